# mmseg's runtime for short runs: visible progress, intermediate checkpoints, a fixed seed.
_base_ = "mmseg_runtime.py"

env_cfg = dict(cudnn_benchmark=False)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=200, max_keep_ckpts=2),
)
log_processor = dict(window_size=20)
randomness = dict(seed=0)
