"""Child registries of mmengine's roots.

``locations`` lets mmengine import the modules on first look-up, so that
``type='ltm_mm.LTMSwin'`` resolves from any mmdet, mmseg or mmpretrain config
without ``custom_imports``.
"""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry("model", parent=ROOT_MODELS, scope="ltm_mm", locations=["ltm_mm.models"])
DATASETS = Registry("dataset", parent=ROOT_DATASETS, scope="ltm_mm", locations=["ltm_mm.datasets"])
HOOKS = Registry("hook", parent=ROOT_HOOKS, scope="ltm_mm", locations=["ltm_mm.engine"])
METRICS = Registry("metric", parent=ROOT_METRICS, scope="ltm_mm", locations=["ltm_mm.engine"])
TRANSFORMS = Registry(
    "transform", parent=ROOT_TRANSFORMS, scope="ltm_mm", locations=["ltm_mm.datasets"]
)
