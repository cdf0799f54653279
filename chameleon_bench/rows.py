"""The rows by name: ROWS are compared with peers and mostly have goals, EXTRAS show something else."""

from collections.abc import Callable

from . import (
    growth,
    overhead,
    rows_app,
    rows_data,
    rows_generate,
    rows_head,
    rows_layers,
    rows_states,
    rows_train,
    two_gpus,
)
from .workload import Bench

ROWS: dict[str, Callable[[Bench], dict]] = {
    "B1": rows_data.prepare,
    "B3": rows_data.clusters,
    "B4": rows_states.feature_pass,
    "B5": rows_head.head_time,
    "B6": rows_head.head_memory,
    "B7": rows_head.head_kernels,
    "B8": rows_train.full_sequence,
    "B9": rows_train.last_position,
    "B10": rows_layers.lora_step,
    "B11": rows_generate.one_at_a_time,
    "B12": rows_generate.adapted_against_plain,
    "B13": rows_generate.mixed_clusters,
    "B14": rows_head.shared_pass,
    "B15": rows_states.share_of_products,
    "B16": rows_app.ten_thousand,
}
EXTRAS: dict[str, Callable[[Bench], dict]] = {
    "ladder": rows_train.ladder,
    "roofline": rows_states.roofline,
    "growth": growth.growth,
    "overhead": overhead.overhead,
    "scaling": two_gpus.scaling,
    "workers": two_gpus.workers,
}
ON_REQUEST = ("scaling", "workers")  # these need more than one GPU
