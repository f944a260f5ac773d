"""Write random tokens as an llm.c .bin file (version 1, uint16): data for speed tests.
Usage: make_tokens.py OUT.bin TOKENS [VOCAB]"""
import array
import random
import sys

path, count = sys.argv[1], int(sys.argv[2])
vocab = int(sys.argv[3]) if len(sys.argv) > 3 else 50257
random.seed(1)
header = array.array("i", [20240520, 1, count] + [0] * 253)
with open(path, "wb") as out:
    header.tofile(out)
    while count:
        piece = min(count, 1 << 20)
        array.array("H", random.choices(range(vocab), k=piece)).tofile(out)
        count -= piece
