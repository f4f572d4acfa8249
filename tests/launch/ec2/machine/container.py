"""``docker run``: the image's entry point, the real supervisor, over the folder that stands for the bucket."""

import os
import sys

arguments = sys.argv[sys.argv.index("--storage") :]
arguments[1] = arguments[1].replace("s3://", f"{os.environ['WORLD']}/s3/")
fast = [
    "--first-s",
    "0.1",
    "--last-s",
    "0.1",
    "--tick-s",
    "0.02",
    "--poll-s",
    "0.1",
    "--scratch",
    f"{os.environ['WORLD']}/scratch",
]
os.execvp("python3", ["python3", "-m", "mtl_cloud.supervise", *arguments, *fast])
