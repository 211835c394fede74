"""What a run learns and is judged on: the one protocol of photographs, classes and video."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from daad.config import Config
from daad.network import Networks
from daad.pictures import Normals, Pictures
from daad.verdict import Reference


class Judgement(Protocol):
    """What a scored test set says: the AUROC by which epochs are compared, and all of metrics.json."""

    @property
    def auroc(self) -> float | None: ...
    def metrics(self) -> dict[str, Any]: ...


Found = TypeVar("Found", bound=Judgement)


class Task(Protocol[Found]):
    """What a run learns and is judged on: photographs, a class of a labelled set, or a video.

    name, kind: a word for it, such as `mnist 3`, and the kind of data, a key of `config.KINDS`.
    subject: what metrics.json calls it: "category" or "video".
    area: what its AUROC is of: "image_auroc" or "frame_auroc".
    source: where its data is ("root"), a "fingerprint" to know it by, and by the key `part` which
    part of the data it is.
    has_reference: whether scores go by what the checkpoint knows of normal pictures.
    completed: decides what the data itself decides, for a resolved configuration.
    judge: scores the test pictures; `reference` is None during training.
    write: writes what is to be read and looked at into a run's folder.
    """

    subject: ClassVar[str]
    area: ClassVar[str]
    part: ClassVar[str]
    has_reference: ClassVar[bool]

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def source(self) -> dict[str, str]: ...
    def completed(self, config: Config) -> Config: ...
    def normal_pictures(self, config: Config) -> Normals: ...
    def test_pictures(self, config: Config) -> Pictures: ...
    def judge(
        self,
        networks: Networks,
        pictures: Pictures,
        config: Config,
        reference: Reference | None = None,
    ) -> Found: ...
    def write(
        self, folder: Path, found: Found | None, metrics: Mapping[str, Any], config: Config
    ) -> None: ...
