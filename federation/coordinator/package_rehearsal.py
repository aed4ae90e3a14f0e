"""Try the parts of packages that a study names, with its settings, before the server waits for sites."""

from federation.protocol.study_config import Study
from federation.strategy.flower_strategies import strategy_of
from federation.strategy.own_strategy import OwnStrategy
from pipeline.training.own_parts import try_loss, try_transform


def try_parts(study: Study) -> None:
    """Run a study's own loss, transform and strategy on invented input. This process must be allowed to run them.

    Raises Refusal: E_NETWORK_CLOSED, E_NETWORK_PACKAGE, E_PACKAGE_PART.
    """
    training, strategy = study.training, strategy_of(study)
    if training.own_loss:
        try_loss(training.own_loss, training.loss_settings)
    if training.own_transform:
        try_transform(training.own_transform, training.transform_settings)
    if isinstance(strategy, OwnStrategy):
        strategy.rehearse()
