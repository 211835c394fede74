"""DAAD and DAAD+ (Hou et al., ICCV 2021), rebuilt on `blockmem`: what the example scripts share."""
