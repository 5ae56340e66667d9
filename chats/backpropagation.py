"""The gradient of a batch of pairs, from errors that are weighted.

The members meet in the loss only through their errors, so its gradient is w⁺ ∇d_θ⁺(z⁺) + w⁻ ∇d_θ⁻(z⁻) with weights that
follow from the errors' values (:func:`.objective.gradient_weights`). Two orders give that same gradient. With all
graphs alive, each error is computed once. With one graph at a time, the rejected error is computed twice: first for its
value alone, and again once the chosen one's graph is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .objective import Objective, PairErrors, gradient_weights

# By side, `chosen` and (where the objective reads it) `rejected`: its error [batch], by the member that sees it.
Sides = Mapping[str, Callable[[], Tensor]]
References = Mapping[str, Tensor]


def all_graphs_alive(
    objective: Objective, beta: float, trained: Mapping[str, Tensor], references: References, scale: float
) -> PairErrors:
    """Adds ``scale`` × the gradient of the summed loss to the members' gradients.

    Args:
        trained: errors with their graph, [batch], by side.
        references: `chosen_reference` and `rejected_reference`, [batch], where the objective reads them.

    Returns:
        all errors, detached.
    """
    errors = PairErrors(**{name: error.detach() for name, error in trained.items()}, **references)
    weighted = [weights * trained[name] for name, weights in _weights(objective, errors, beta).items()]
    _backpropagate(torch.stack(weighted), scale)
    return errors


def one_graph_at_a_time(
    objective: Objective, beta: float, sides: Sides, references: References, scale: float
) -> PairErrors:
    """As :func:`all_graphs_alive`, of errors that are computed when called for: less memory, one more pass."""
    later = {name: error for name, error in sides.items() if name != "chosen"}
    with torch.no_grad():
        values = {name: error() for name, error in later.items()}
    chosen = sides["chosen"]()
    errors = PairErrors(chosen.detach(), **values, **references)
    weights = _weights(objective, errors, beta)
    _backpropagate(weights["chosen"] * chosen, scale)
    del chosen
    for name, error in later.items():
        _backpropagate(weights[name] * error(), scale)
    return errors


def _weights(objective: Objective, errors: PairErrors, beta: float) -> dict[str, Tensor]:
    """Of each error's gradient, [batch], the chosen one's first."""
    chosen, rejected = gradient_weights(objective, errors, beta)
    return {"chosen": chosen} if rejected is None else {"chosen": chosen, "rejected": rejected}


def _backpropagate(weighted: Tensor, scale: float) -> None:
    """Adds the gradient of scale · Σ wᵢ dᵢ."""
    # A tensor's method, of which torch states no types.
    torch.autograd.backward(weighted.sum().mul(scale))
