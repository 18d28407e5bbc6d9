# mmpretrain's runtime for short runs: visible progress, a checkpoint per epoch, a fixed seed.
_base_ = "mmpretrain::_base_/default_runtime.py"

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=2))
log_processor = dict(window_size=20)
randomness = dict(seed=0)
