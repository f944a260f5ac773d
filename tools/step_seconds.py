"""Seconds from one step's end to the next, of all videos together, from a sampling's metrics.jsonl.
Usage: step_seconds.py METRICS.JSONL"""
import json
import sys

ends = sorted(line["seconds"] for line in map(json.loads, open(sys.argv[1])) if "step" in line)
print(f"{(ends[-1] - ends[0]) / (len(ends) - 1):.4g}")
