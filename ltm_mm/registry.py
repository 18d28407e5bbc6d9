"""Child registries of mmengine's roots.

``locations`` lets mmengine import the modules on first look-up, so that
``type='ltm_mm.LTMSwin'`` resolves from any mmdet, mmseg or mmpretrain config
without ``custom_imports``.
"""

from importlib import import_module

try:
    from mmengine.registry import DATASETS as ROOT_DATASETS
    from mmengine.registry import HOOKS as ROOT_HOOKS
    from mmengine.registry import METRICS as ROOT_METRICS
    from mmengine.registry import MODELS as ROOT_MODELS
    from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
    from mmengine.registry import Registry
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed; without it ltm_mm supports timm models only: "
        "pip install 'ltm_mm[mm]'",
        name=error.name,
    ) from error

MODELS = Registry("model", parent=ROOT_MODELS, scope="ltm_mm", locations=["ltm_mm.models.register"])
DATASETS = Registry("dataset", parent=ROOT_DATASETS, scope="ltm_mm", locations=["ltm_mm.datasets"])
HOOKS = Registry(
    "hook",
    parent=ROOT_HOOKS,
    scope="ltm_mm",
    locations=[
        "ltm_mm.engine.ib_hook",
        "ltm_mm.engine.statistics_hook",
        "ltm_mm.visualization.hook",
    ],
)
METRICS = Registry("metric", parent=ROOT_METRICS, scope="ltm_mm", locations=["ltm_mm.evaluation"])
TRANSFORMS = Registry(
    "transform", parent=ROOT_TRANSFORMS, scope="ltm_mm", locations=["ltm_mm.datasets"]
)


def register_or_explain(registry: Registry, name: str, package: str, module: str) -> None:
    """Import the module that registers a class; without its package, building it reports that.

    Args:
        registry: where the class goes.
        name: of the class.
        package: what it needs, mmdet, mmseg or mmpretrain.
        module: where it is.
    """
    try:
        import_module(module)
    except (ImportError, AssertionError) as error:  # upstream asserts mmcv's version
        reason = error  # the name in `except` is gone afterwards

        extra = "mmpretrain" if package == "mmpretrain" else "mm"

        def init(self: object, *args: object, **kwargs: object) -> None:
            raise ImportError(
                f"ltm_mm.{name} needs {package}, which does not import here ({reason}): "
                f"pip install 'ltm_mm[{extra}]'"
            ) from reason

        registry.register_module(name=name, module=type(name, (), {"__init__": init}))
