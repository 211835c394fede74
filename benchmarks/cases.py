"""A case: one workload at one dtype on one device, ready for any provider."""

from typing import Protocol

from benchmarks.devices import Device, Run
from benchmarks.gate import Errors
from benchmarks.layers import LayerCase
from benchmarks.models import ModelCase
from benchmarks.providers import Layer
from benchmarks.workloads import ModelWorkload, Workload

AnyWorkload = Workload | ModelWorkload


class Case(Protocol):
    """What is asked of a layer alone and of a whole network alike."""

    images: int | None
    """Pictures a run, where a run has pictures."""

    def runner(self, layer: Layer, mode: str) -> Run:
        """What is timed."""

    def errors(self, layer: Layer, mode: str, renormalize: bool) -> Errors:
        """A provider's errors against float64, by kind."""

    def yardstick(self, mode: str, renormalize: bool) -> Errors:
        """Eager's errors at the same dtype, by kind."""


def make_case(workload: AnyWorkload, dtype: str, device: Device) -> Case:
    if isinstance(workload, ModelWorkload):
        return ModelCase(workload, dtype, device)
    return LayerCase(workload, dtype, device)
