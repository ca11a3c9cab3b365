"""The devices that estimates are made for, with the source of every figure. Plain Python."""

from __future__ import annotations

from dataclasses import dataclass

from codellama_model.config import ConfigError

GIGA, TERA = 10**9, 10**12
GIBI = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator and its links.

    Args:
        name: of the machine it sits in.
        peak_flops: matrix products in float16, FLOP/s.
        memory: bytes.
        devices_per_node: accelerators of one machine.
        node_bandwidth: bytes/s one way, of one accelerator to the others of its machine together.
        network_bandwidth: bytes/s one way, of one accelerator to other machines.
        sources: where the figures come from.
    """

    name: str
    peak_flops: float
    memory: int
    devices_per_node: int
    node_bandwidth: float
    network_bandwidth: float
    sources: tuple[str, ...]


_ASCEND_910B = (
    "313 TFLOPS float16 (Ascend 910B3): https://jdc.huawei.com/jdc/refactor/viewthread?tid=1175654, as cited by third"
    " parties; other variants of the chip are quoted with 280 to 376",
    "64 GB, 7 HCCS links of 56 GB/s both ways together (392 GB/s): Huawei's technical specifications of Atlas 800T A2,"
    " as cited by third parties",
    "one 200GE RoCE port per accelerator: the same",
)
DEVICES: dict[str, Device] = {
    name: Device(
        name,
        peak_flops=313 * TERA,
        memory=64 * GIBI,
        devices_per_node=8,
        node_bandwidth=7 * 28 * GIGA,
        network_bandwidth=25 * GIGA,
        sources=(*_ASCEND_910B, *more),
    )
    for name, more in (
        ("Atlas 800T A2", ()),
        ("Atlas 900 A2 PoDc", ("taken as the same accelerators and links as in Atlas 800T A2; no figures of its own",)),
    )
}


def device(name: str) -> Device:
    """The device of that name; a `ConfigError` lists the names."""
    if name not in DEVICES:
        raise ConfigError(f"no device {name!r}; known: {', '.join(DEVICES)}")
    return DEVICES[name]
