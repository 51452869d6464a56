"""Activations as codes and scales, one row at a time: what a trained checkpoint says of its activations, in NumPy.

| kind | signed | nowhere negative |
|---|---|---|
| int8 | code = x / (max|x| / 127) | code = x / (max x / 255) |
| elastic2, elastic1 | `nearbank.models.elastic.Elastic`, one learned α per tensor | the same |
| twn | −1, 0, 1 by 0.7 · mean|x|; scale: mean of the others | 0, 1 alike |
| bwn | −1, 1 by sign; scale: mean|x| | 1; scale: mean x |

"fp32" rounds nothing. Training's own, with gradients, is `nearbank.models.training.elastic`.
"""

from __future__ import annotations

KINDS = ("fp32", "int8", "elastic2", "elastic1", "twn", "bwn")
