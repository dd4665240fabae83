"""What a reconstruction computes, in FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from slm_ray.models.reconstruct_sums import square_flops
from slm_ray.records.architecture import Architecture
from slm_ray.records.cost import flops_per_token


def _body_flops(architecture: Architecture, sequence_length: int) -> int:
    """FLOPs per token of a forward pass that stops before the output head."""
    head = 2 * architecture.structure.vocab_size * architecture.hidden_size
    return flops_per_token(architecture, sequence_length) - head


def reconstruction_flops(
    teacher: Architecture, students: Sequence[Architecture], tokens: int, sequence_length: int
) -> float:
    """FLOPs of reconstructing students side by side.

    One pass of the teacher for all of them; and for each a pass of its own, sums of products of what every sub-layer
    reads and is given, and the solutions of the systems they make.

    Args:
        teacher: The teacher's sizes.
        students: The students' sizes.
        tokens: Tokens fitted on.
        sequence_length: Tokens per sequence.
    """
    total = float(tokens) * _body_flops(teacher, sequence_length)
    for student in students:
        hidden, head_dim = student.hidden_size, student.structure.head_dim
        per_token, solving = float(_body_flops(student, sequence_length)), 0.0
        for layer in student.layers:
            for width in (layer.num_attention_heads * head_dim, layer.intermediate_size):
                if width:
                    per_token += square_flops(hidden) + 2 * hidden * teacher.hidden_size
                    per_token += square_flops(width) + 2 * width * hidden
                    solving += width**3 / 3 + 2 * width**2 * hidden
                    solving += hidden**3 / 3 + 2 * hidden**2 * teacher.hidden_size
        total += tokens * per_token + solving
    return total
