"""A text of random numbers, for measuring. Usage: make_text.py OUT TOKENS COLUMNS POOLED_COLUMNS"""
import json, random, struct, sys

out, tokens, columns, pooled = sys.argv[1], *map(int, sys.argv[2:5])
random.seed(1)
values = [random.gauss(0, 1) for _ in range(4096)]
sizes = {"text": [tokens, columns]} | ({"pooled": [pooled]} if pooled else {})
header, data = {}, b""
for name, dims in sizes.items():
    count = 1
    for dim in dims:
        count *= dim
    begin = len(data)
    data += struct.pack(f"<{count}f", *(values[(i * 2654435761 >> 7) % 4096] for i in range(count)))
    header[name] = {"dtype": "F32", "shape": dims, "data_offsets": [begin, len(data)]}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(out, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text + data)
