"""A model with its loss, as one module: what is distributed, and what the loop calls."""

from torch import Tensor, nn

from retnet.loss import linear_next_token_loss, linear_token_costs
from retnet.model import RetNet, RetNetState
from retnet.ops import retention_chunkwise
from retnet.position import Retention


class NextTokenLoss(nn.Module):
    """The mean loss of next tokens, in nats; in evaluation mode, what each of them costs."""

    def __init__(self, model: RetNet) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        segment_ids: Tensor | None = None,
        state: RetNetState | None = None,
        retain: Retention = retention_chunkwise,
    ) -> tuple[Tensor, RetNetState]:
        """(the loss, a scalar, or [B, T] costs; the state after the last token).

        tokens, targets, segment_ids: [B, T] integers; see `RetNet.features`.
        """
        features, state = self.model.features(tokens, state, retain=retain, segment_ids=segment_ids)
        reduce = linear_next_token_loss if self.training else linear_token_costs
        return reduce(features, self.model.head_weight, targets), state
