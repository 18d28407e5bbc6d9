"""What reading a checkpoint takes from mmengine, where it is installed."""

try:
    from mmengine.dist import barrier
    from mmengine.logging import print_log
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.model import is_model_wrapper
    from mmengine.runner.checkpoint import get_external_models, get_mmcls_models
except ModuleNotFoundError:
    import logging

    from torch import nn

    class HistoryBuffer:  # type: ignore[no-redef]
        """Stands in the list of classes that a checkpoint may hold."""

    def barrier() -> None:
        """One process needs none."""

    def print_log(msg: str, logger: object = None, level: int = logging.INFO) -> None:
        """As mmengine's, without its formats."""
        logging.getLogger("ltm_mm").log(level, msg)

    def is_model_wrapper(model: nn.Module) -> bool:
        """Whether a model is wrapped for several processes."""
        return isinstance(model, nn.parallel.DistributedDataParallel)

    def get_external_models() -> dict[str, str]:
        """Addresses of ``open-mmlab://`` names."""
        raise ValueError("names such as open-mmlab://NAME need mmengine: pip install 'ltm_mm[mm]'")

    get_mmcls_models = get_external_models

__all__ = [
    "HistoryBuffer",
    "barrier",
    "get_external_models",
    "get_mmcls_models",
    "is_model_wrapper",
    "print_log",
]
