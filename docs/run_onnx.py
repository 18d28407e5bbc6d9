"""Draw what an exported detector finds on a photo: python docs/run_onnx.py FILE.onnx PHOTO OUT

Needs nothing but onnxruntime, NumPy and Pillow; the file says itself how it is to be run.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

model, photo, out = sys.argv[1:4]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}

# As in the config: scale the photo into its size, put the channels in order, normalise.
image = Image.open(photo).convert("RGB")
size = image.size
if scale := about.get("resize"):
    factor = min(max(scale["scale"]) / max(size), min(scale["scale"]) / min(size))
    size = tuple(int(side * factor + 0.5) for side in size)
    size = size if scale["keep_ratio"] else tuple(scale["scale"])
pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
pixels = pixels if about["channels"] == "RGB" else pixels[..., ::-1]
pixels = (pixels - about["mean"]) / about["std"]
batch = pixels.astype(np.float32).transpose(2, 0, 1)[None]
results = dict(zip(about["outputs"], session.run(None, {"image": batch}), strict=True))

# Back to the photo's own pixels; places without a detection have label -1 and score 0.
ratio = np.array([*image.size, *image.size]) / [*size, *size]
for i in np.flatnonzero(results["scores"][0] > 0.3):
    left, upper, right, lower = (results["boxes"][0, i] * ratio).round().astype(int).tolist()
    label = int(results["labels"][0, i])
    color = tuple(np.random.default_rng(label).integers(64, 256, 3).tolist())
    if about.get("masks") == "box" and right > left and lower > upper:  # a grid over the box
        grid = Image.fromarray(results["masks"][0, i]).resize((right - left, lower - upper))
        inside = Image.fromarray(
            (np.asarray(grid) >= about["mask_threshold"]).astype("uint8") * 128
        )
        image.paste(color, (left, upper), inside)
    name = about["classes"][label] if about.get("classes") else str(label)
    text = f"{name} {results['scores'][0, i]:.2f}"
    ImageDraw.Draw(image).rectangle((left, upper, right, lower), outline=color, width=2)
    ImageDraw.Draw(image).text((left + 3, upper + 1), text, fill=color)
    print(text, (left, upper, right, lower))
image.save(out)
