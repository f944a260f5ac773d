"""Seconds of a step from a sampling's metrics.jsonl: of all videos together, the first step of each left out.
Usage: step_seconds.py METRICS.JSONL"""
import json
import sys

lines = [line for line in map(json.loads, open(sys.argv[1])) if "step" in line]
first = max(line["seconds"] for line in lines if line["step"] == 1)
last = max(line["seconds"] for line in lines)
steps = max(line["step"] for line in lines)
print(f"{(last - first) / (steps - 1):.4g}")
