"""Draw what an exported detector finds on a photo: python docs/run_onnx.py FILE.onnx PHOTO OUT

Needs onnxruntime, NumPy and Pillow only; the file says itself how it is to be run.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}

# As in the config: scale the photo into its size, put the channels in order, normalise.
image = Image.open(sys.argv[2]).convert("RGB")
scale = metadata.get("resize", {"scale": image.size, "keep_ratio": True})
factor = min(max(scale["scale"]) / max(image.size), min(scale["scale"]) / min(image.size))
size = [int(side * factor + 0.5) for side in image.size] if scale["keep_ratio"] else scale["scale"]
pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
pixels = pixels if metadata["channels"] == "RGB" else pixels[..., ::-1]
batch = ((pixels - metadata["mean"]) / metadata["std"]).astype(np.float32).transpose(2, 0, 1)[None]
found = dict(zip(metadata["outputs"], session.run(None, {"image": batch}), strict=True))

# Back to the photo's own pixels; places without a detection have score 0.
boxes = found["boxes"][0] * np.tile(np.divide(image.size, size), 2)
for i in np.flatnonzero(found["scores"][0] > 0.3):
    left, upper, right, lower = box = boxes[i].round().astype(int).tolist()
    label = int(found["labels"][0, i])
    color = tuple(np.random.default_rng(label).integers(64, 256, 3).tolist())
    if metadata.get("masks") == "box" and right > left and lower > upper:  # a grid over the box
        grid = Image.fromarray(found["masks"][0, i]).resize((right - left, lower - upper))
        half = (np.asarray(grid) >= metadata["mask_threshold"]).astype("uint8") * 128
        image.paste(color, (left, upper), Image.fromarray(half))
    name = metadata.get("classes", {label: str(label)})[label]
    print(text := f"{name} {found['scores'][0, i]:.2f}", tuple(box))
    ImageDraw.Draw(image).rectangle(box, outline=color, width=2)
    ImageDraw.Draw(image).text((left + 3, upper + 1), text, fill=color)
image.save(sys.argv[3])
