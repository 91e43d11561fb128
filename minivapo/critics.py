"""A critic's network: a language model's body with one output for each token, whatever its family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import guard_torch_init_functions
from transformers.modeling_outputs import TokenClassifierOutput

from minivapo.errors import UserError


class TokenScores:
    """The body of a causal LM under a linear head, for families for which transformers has no token classifier.

    Mixed with a family's `PreTrainedModel` by `critic_class`. The names of its weights are those of transformers' own
    classifiers: the body's as in the policy, and `score`.
    """

    base_model_prefix: str  # this and the next come with the family's class
    post_init: Callable[[], None]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # the family's
        self.num_labels = config.num_labels
        body: Any = transformers.MODEL_MAPPING[type(config)]
        setattr(self, self.base_model_prefix, body(config))
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def fill_buffers(self) -> None:
        """Has the body compute, after a load, what no file holds, such as the multipliers of Falcon H1.

        Trap: transformers takes a body within a class that is not its own for done, and leaves them random.
        """
        body = getattr(self, self.base_model_prefix)
        with guard_torch_init_functions():  # what was loaded stays
            body._init_weights(body)

    def forward(self, input_ids: Tensor, **given: Any) -> TokenClassifierOutput:
        """Scores [rows, time, labels] after each token."""
        body = getattr(self, self.base_model_prefix)
        return TokenClassifierOutput(logits=self.score(body(input_ids, **given).last_hidden_state))


@functools.cache
def critic_class(config_class: type) -> Any:
    """The class of a critic whose config is of this class: transformers' own where there is one.

    Raises:
        UserError: no causal LM has such a config.
    """
    known = transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    if config_class in known:
        return known[config_class]
    if config_class not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"a critic needs the body of a language model, and transformers has none for {config_class.__name__}: name "
            "another with --critic, or take a preset without one (grpo, dapo)."
        )
    policy: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    family = next(c for c in policy.__mro__ if c is not policy and issubclass(c, transformers.PreTrainedModel))
    name = policy.__name__.replace("ForCausalLM", "").replace("LMHeadModel", "") + "ForTokenClassification"
    names = {"base_model_prefix": policy.base_model_prefix, "__module__": __name__}
    return type(name, (TokenScores, family), names)


def value_head(critic: nn.Module) -> nn.Linear:
    """The layer that makes a critic's one output."""
    return next(m for m in reversed(list(critic.modules())) if isinstance(m, nn.Linear) and m.out_features == 1)


def score_in_float32(critic: nn.Module) -> None:
    """Has the value head compute in float32 whatever is below it: bfloat16 keeps three digits of a value."""
    head: Any = value_head(critic)
    head.forward = functools.partial(head_scores, head)


def head_scores(head: nn.Linear, hidden: Tensor) -> Tensor:
    """The forward of the value head."""
    bias = None if head.bias is None else head.bias.float()
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), head.weight.float(), bias)
