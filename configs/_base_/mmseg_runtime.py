# mmseg's runtime for short runs: visible progress, checkpoints on the way, a fixed seed.
_base_ = "mmseg::_base_/default_runtime.py"

env_cfg = dict(cudnn_benchmark=False)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=200, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
log_processor = dict(by_epoch=False, window_size=20)
randomness = dict(seed=0)
