#!/bin/bash
# heddle data as a user meets it: sets of shapes, images, arrays and videos, and what it refuses.
set -u
heddle=$PWD/${HEDDLE_BUILD:-build/release}/heddle
case ${HEDDLE_BUILD:-} in /*) heddle=$HEDDLE_BUILD/heddle ;; esac
# shellcheck source=tests/support/checks.sh
. "$PWD/tests/support/checks.sh"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
unset "${!OMPI_@}" "${!PMIX_@}"

has() { # file text...
    local file=$1 text
    shift
    for text; do
        grep -qF -- "$text" "$file" || { echo "$file lacks: $text" >>out && return 1; }
    done
}

# --- shapes ---
shapes() {
    says 0 "30 samples of 27 classes are in shapes" -- \
        "$heddle" data shapes shapes --samples 30 --frames 4 --width 20 --height 16 --fps 6 &&
        has shapes/index.json '"kind": "pixels"' '"null_text": 0' '"tokens": 3, "name": "red circle sideways"' \
            '"dims": [3, 4, 16, 20], "text": 1, "fps": 6.0' '"text": 27'
}
check "shapes_make_a_set_of_all_classes" shapes
same_bytes() { # the same seed the same set, another seed another one
    exits 0 "$heddle" data shapes again --samples 30 --frames 4 --width 20 --height 16 --fps 6 &&
        cmp shapes/shard-00000.safetensors again/shard-00000.safetensors >>out 2>&1 &&
        exits 0 "$heddle" data shapes other --samples 30 --frames 4 --width 20 --height 16 --fps 6 --seed 2 &&
        ! cmp -s shapes/shard-00000.safetensors other/shard-00000.safetensors
}
check "shapes_are_a_function_of_the_seed" same_bytes
check "a_set_is_not_overwritten" says 1 "shapes/index.json: is there already" -- "$heddle" data shapes shapes
check "inspect_describes_a_shard" says 0 "0.latents" "U8" -- "$heddle" inspect shapes/shard-00000.safetensors

# --- words that are wrong ---
check "an_unknown_kind_is_refused" says 1 'kind is "songs"' -- "$heddle" data songs x
check "a_lone_word_is_refused" exits 2 "$heddle" data shapes
check "a_wrong_number_is_refused" says 2 "from 1 to" -- "$heddle" data shapes x --frames none
check "width_without_height_is_refused" says 1 "want both or neither" -- "$heddle" data shapes x --width 8
check "shapes_take_no_input" says 1 "takes no input" -- "$heddle" data shapes y x
check "nothing_is_left_of_a_failure" test ! -e x/index.json

# --- arrays and images, whose files need a tool to be made ---
if command -v python3 >/dev/null; then
    python3 - <<'END'
import json, os, struct, zlib

def safetensors(path, tensors, metadata=None):
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)

def floats(*values):
    return struct.pack("<%df" % len(values), *values)

# Two samples of [2, 1, 1, 3] with texts of 2 and 1 valid tokens of 2 columns.
safetensors("batch.safetensors", {
    "latents": ("F32", [2, 2, 1, 1, 3], floats(*range(12))),
    "text": ("F32", [2, 2, 2], floats(1, 2, 3, 4, 5, 6, 7, 8)),
    "text_counts": ("I64", [2], struct.pack("<2q", 2, 1)),
    "pooled": ("F32", [2, 1], floats(1, 2)),
    "null_text": ("F32", [1, 2], floats(0, 0)),
    "null_pooled": ("F32", [1], floats(0)),
}, {"fps": "12.5"})
# Three samples of other sizes that share a text.
numbered = {}
for i in range(3):
    numbered["%d.latents" % i] = ("BF16", [2, 1, 1, i + 1], bytes(2 * 2 * (i + 1)))
    numbered["%d.text" % i] = ("F32", [1, 2], floats(9, 9))
    numbered["%d.pooled" % i] = ("F32", [1], floats(3))
safetensors("numbered.safetensors", numbered)
safetensors("count.safetensors", {
    "latents": ("F32", [1, 1, 1, 1, 1], floats(0)),
    "text": ("F32", [1, 2, 1], floats(1, 2)),
    "text_counts": ("I64", [1], struct.pack("<q", 3)),
})
safetensors("wrong.safetensors", {"weights": ("F32", [1], floats(0))})
safetensors("flat.safetensors", {"latents": ("F32", [2, 2], floats(0, 0, 0, 0))})

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def png(path, width, height, colour):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    rows = (b"\0" + bytes(colour) * width) * height
    with open(path, "wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
                  chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))

png("images/red-cat/a.png", 6, 4, (255, 0, 0))
png("images/red-cat/b.png", 4, 6, (255, 0, 0))
png("images/dog/c.png", 8, 8, (0, 0, 255))
with open("images/dog/notes.txt", "w") as out:
    out.write("not an image")
with open("broken.png", "w") as out:
    out.write("not an image")
END
    arrays() {
        says 0 "2 samples are in arrays" -- "$heddle" data arrays batch.safetensors arrays &&
            has arrays/index.json '"kind": "latents", "channels": 2, "text_columns": 2, "pooled_columns": 1' \
                '"null_text": 2' '"tokens": 2' '"tokens": 1' '"dims": [2, 1, 1, 3], "text": 1, "fps": 12.5'
    }
    check "arrays_in_a_batch_make_a_set" arrays
    shared() {
        says 0 "5 samples are in both" -- "$heddle" data arrays batch.safetensors numbered.safetensors both &&
            has both/index.json '"dims": [2, 1, 1, 1], "text": 3' '"dims": [2, 1, 1, 3], "text": 3' &&
            [ "$(grep -c '"tokens"' both/index.json)" = 4 ]
    }
    check "equal_texts_are_stored_once" shared
    check "a_wrong_count_is_named" says 1 "text_counts[0] is 3, want 0 to 2" -- "$heddle" data arrays count.safetensors x
    check "a_file_without_arrays_is_refused" says 1 'has neither "latents"' -- "$heddle" data arrays wrong.safetensors x
    check "wrong_dimensions_are_named" says 1 "has 2 dimensions, want 5" -- "$heddle" data arrays flat.safetensors x
    images() {
        says 0 "3 samples of 2 classes are in pictures" -- "$heddle" data images images pictures --width 4 --height 4 &&
            has pictures/index.json '"tokens": 2, "name": "red-cat"' '"tokens": 2, "name": "dog"' \
                '"dims": [3, 1, 4, 4], "text": 2'
    }
    check "images_in_folders_make_a_set_of_classes" images
    sizes() {
        says 0 "3 samples of 2 classes are in sizes" -- "$heddle" data images images sizes &&
            has sizes/index.json '[3, 1, 4, 6]' '[3, 1, 6, 4]' '[3, 1, 8, 8]'
    }
    check "images_keep_their_sizes_unless_told_otherwise" sizes
    check "a_broken_image_is_named" says 1 "broken.png" -- "$heddle" data images broken.png x
    check "a_folder_without_images_is_refused" says 1 "no files that end in .png" -- "$heddle" data images shapes x
    check "nothing_is_left_of_failed_arrays" test ! -e x/index.json
else
    echo "skipped: arrays and images, python3 is not here to make files"
fi

# --- videos ---
videos_without_ffmpeg() {
    mkdir -p empty
    : >film.mp4
    says 1 "needs ffmpeg in PATH" -- env PATH="$work/empty" "$heddle" data videos film.mp4 x --width 8 --height 8
}
check "videos_want_ffmpeg_and_say_so" videos_without_ffmpeg
check "videos_want_a_size" says 1 "want the width and height" -- "$heddle" data videos film.mp4 x

# An ffmpeg of our own tells what it is asked for and gives 10 frames, so that the pipe is tested where
# the real one is missing.
mkdir -p fake
cat >fake/ffmpeg <<'END'
#!/bin/bash
echo "$*" >"$FAKE_LOG"
case $* in *broken*) echo "broken: no film" >&2 && exit 1 ;; esac
head -c $((10 * 3 * 8 * 8)) /dev/zero
END
chmod +x fake/ffmpeg
export FAKE_LOG=$work/words
mkdir -p films/cat films/dog
: >films/cat/-a.mp4
: >films/dog/b.webm
: >broken.mp4
clips() {
    says 0 "4 samples of 2 classes are in films.set" -- \
        env PATH="$work/fake:$PATH" "$heddle" data videos films films.set --width 8 --height 8 --frames 2 --stride 2 --fps 6 &&
        has films.set/index.json '"dims": [3, 2, 8, 8], "text": 1, "fps": 3.0' '"name": "dog"' &&
        has words "-i file:films/dog/b.webm" "fps=6,scale=8:8:force_original_aspect_ratio=increase" "crop=8:8" "rgb24"
}
check "videos_are_cut_into_clips" clips
check "a_film_that_ffmpeg_refuses_is_named" says 1 "broken.mp4: ffmpeg failed on it (status 1)" -- \
    env PATH="$work/fake:$PATH" "$heddle" data videos broken.mp4 x --width 8 --height 8

if command -v ffmpeg >/dev/null; then
    real() {
        exits 0 ffmpeg -nostdin -loglevel error -f lavfi -i testsrc=size=64x48:rate=10:duration=2 -y real.avi &&
            says 0 "5 samples are in real" -- "$heddle" data videos real.avi real --width 16 --height 16 --frames 4
    }
    check "a_real_film_makes_clips" real
else
    echo "skipped: a real film, ffmpeg is not here"
fi
