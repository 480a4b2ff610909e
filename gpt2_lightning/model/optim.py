"""AdamW and Muon with decay for matrices only, and clipping for every strategy."""

import math
from collections.abc import Callable, Collection, Iterable
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def build_adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    decayed: Collection[str],
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    fused: bool,
) -> torch.optim.AdamW:
    """Build AdamW, whose decay spares biases and layer norms.

    Args:
        parameters: Names and parameters of the model; those that require a gradient are trained.
        decayed: Names of those that decay: embeddings and matrices.
        learning_rate: Peak learning rate.
        weight_decay: Of those that decay.
        betas: Decay rates of the running means of the gradient and its square.
        fused: Take the step in one kernel: quicker, and impossible with scaled fp16 gradients.

    Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
    https://arxiv.org/abs/1711.05101.
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [it for name, it in trained if name in decayed], "weight_decay": weight_decay},
        {"params": [it for name, it in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the blocks, and AdamW for everything else.

    One learning rate serves both: Muon's updates are scaled to the size of AdamW's. torch's own
    Muon takes one matrix after another, in bf16, which takes a CPU without bf16 instructions 25
    times as long; here matrices of one shape go together, in fp32 on a CPU.

    Args:
        adamw: AdamW over all that is trained, whose step is taken for the others.
        matrices: Parameters of two dimensions that Muon takes over from it.
        momentum: Of Muon's running mean of gradients.

    Reference: Jordan et al., "Muon", https://kellerjordan.github.io/posts/muon/; the scale is that
    of Liu et al., "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982.
    """

    def __init__(
        self,
        adamw: torch.optim.AdamW,
        matrices: Collection[nn.Parameter],
        momentum: float = 0.95,
    ) -> None:
        own = {id(it) for it in matrices}
        decayed, spared = adamw.param_groups
        muon = {
            "params": [it for it in decayed["params"] if id(it) in own],
            "lr": decayed["lr"],
            "weight_decay": decayed["weight_decay"],
            "momentum": momentum,
        }
        decayed["params"] = [it for it in decayed["params"] if id(it) not in own]
        self._adamw = adamw
        super().__init__([muon, decayed, spared], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take both steps; the closure is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        muon, *others = self.param_groups
        self._step_matrices(muon)
        # a loaded state has put other objects in the place of groups and states
        self._adamw.param_groups, self._adamw.state = others, self.state
        self._adamw.step()
        return loss

    @torch.no_grad()
    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(weight.shape, []).append(weight)
        rate, momentum = group["lr"], group["momentum"]
        for shape, weights in by_shape.items():
            gradients = [cast(Tensor, weight.grad) for weight in weights]
            means = [
                self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                for weight in weights
            ]
            torch._foreach_lerp_(means, gradients, 1 - momentum)
            updates = torch.stack(torch._foreach_lerp(gradients, means, momentum))  # Nesterov's
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            scaled = orthogonalized(updates).to(updates.dtype).mul_(-rate * 0.2 * max(shape) ** 0.5)
            torch._foreach_add_(weights, scaled.unbind())


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of a fifth-order iteration, by Jordan


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return about U V^T of each matrix U S V^T: its singular values come to lie near 1.

    Five steps of a Newton-Schulz iteration leave them between 0.7 and 1.2, which serves as well as
    1 does. Of half precision where a GPU multiplies it quickly. In full precision, wide matrices
    are iterated by the product with their own transpose, which is small and takes half the time;
    in half precision that is unstable.

    Args:
        matrices: Of shape ``(matrices, rows, columns)``.

    Reference: Dao AI Lab, "Gram Newton-Schulz", https://tridao.me/blog/2026/gram-newton-schulz/.
    """
    a, b, c = NEWTON_SCHULZ
    found = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    is_tall = found.size(-2) > found.size(-1)
    found = found.mT if is_tall else found
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    if found.dtype is torch.float32 and found.size(-1) >= 1.5 * found.size(-2):
        gram = found @ found.mT
        factors: list[Tensor] = []  # polynomials of one matrix, so their order makes no difference
        for _ in range(5):
            if factors:
                gram = factors[-1] @ gram @ factors[-1]
            factors.append(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
            factors[-1].diagonal(dim1=-2, dim2=-1).add_(a)
        found = reduce(torch.matmul, factors) @ found
    else:
        for _ in range(5):
            gram = found @ found.mT
            update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            found = torch.baddbmm(found, update, found, beta=a)
    return found.mT if is_tall else found


def clip_gradient_norm(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients down to a norm of at most ``limit``.

    Args:
        parameters: Those of the model, in shards or whole.
        limit: Largest Euclidean norm over all parameters; infinity leaves them as they are.

    Returns:
        The norm before, over all ranks' shards, a scalar.
    """
    trained = [it for it in parameters if it.grad is not None]
    norm = nn.utils.get_total_norm([cast(Tensor, it.grad) for it in trained])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()  # a collective: each rank has the norm of its shards alone
    if limit < math.inf:
        nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm
