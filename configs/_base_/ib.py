# The information-bottleneck loss on merged tokens; these are the hook's defaults.
custom_hooks = [
    dict(
        type="ltm_mm.InformationBottleneck",
        bound="paper",  # or 'variational'
        weight=0.1,
        warmup=0.3,  # share of the training before the loss is added
    )
]
