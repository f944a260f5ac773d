#!/bin/bash
# The heddle program as a user meets it: help, refusals and their exit statuses, plans, inspect, convert.
set -u
heddle=$PWD/${HEDDLE_BUILD:-build/release}/heddle
case ${HEDDLE_BUILD:-} in /*) heddle=$HEDDLE_BUILD/heddle ;; esac
source=$PWD
# shellcheck source=tests/support/checks.sh
. "$source/tests/support/checks.sh"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
unset "${!OMPI_@}" "${!PMIX_@}"

ranks=(mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca btl_vader_single_copy_mechanism none)
[ "$(id -u)" != 0 ] || ranks+=(--allow-run-as-root)

for i in {1..400}; do echo "line $i: shuttles carry the weft, $((i * i)) times"; done >text.txt
cat >config.json <<'END'
{
    "model": {"layers": 2, "hidden": 32, "heads": 4},
    "data": {"path": "text.txt"},
    "train": {"steps": 4, "tokens": 16, "micro_batch": 2},
    "run": {"directory": "run"}
}
END

# --- what it tells about itself ---
version=$(sed -n 's/.*HD_VERSION_STRING "\(.*\)"/\1/p' "$source/include/heddle/version.h")
check "version_is_that_of_the_headers" says 0 "heddle $version" -- "$heddle" --version
check "help_lists_every_command" says 0 train generate plan inspect convert -- "$heddle" --help

every_key() { # the help of the commands that compute, together
    local key missing=0
    { "$heddle" train --help && "$heddle" generate --help && "$heddle" sample --help; } >help
    # shellcheck disable=SC2016
    sed -n 's/^| `\([a-z0-9_.]*\)` .*/\1/p' "$source/docs/guide/config-keys.md" >keys
    [ "$(wc -l <keys)" -ge 50 ] || return 1
    while read -r key; do
        grep -qE -- "^ *--$key( |$)" help || { echo "$key is missing" >>out && missing=1; }
    done <keys
    [ "$missing" = 0 ]
}
check "help_lists_every_key" every_key
up_to_date() { "$heddle" "$1" >now && cmp now "$source/$2" >out 2>&1; }
check "the_manual_page_is_what_the_program_prints" up_to_date --man docs/man/heddle.1
check "the_guide_s_keys_are_what_the_program_prints" up_to_date --keys docs/guide/config-keys.md
well_formed() {
    command -v man >/dev/null || return 0
    LC_ALL=C.UTF-8 man --warnings -l -Tutf8 "$source/docs/man/heddle.1" 2>out >/dev/null && [ ! -s out ]
}
check "the_manual_page_is_well_formed" well_formed

# --- refusals ---
check "no_command_is_a_usage_error" says 2 "Usage:" -- "$heddle"
check "an_unknown_command_is_answered_with_the_known_ones" says 2 "'trian'" "train, generate" -- "$heddle" trian
check "an_unknown_key_is_answered_with_the_nearest" says 2 train.stepz "nearest is train.steps" -- \
    "$heddle" train --train.stepz=4
check "a_key_without_its_section_is_answered_with_the_whole" says 2 "nearest is train.steps" -- "$heddle" train --steps 4
echo '{"train": {"steps": 4, "tokns": 8}}' >typo.json
check "an_unknown_key_in_a_file_is_named_with_its_line" says 2 "typo.json:1" "nearest is train.tokens" -- \
    "$heddle" train typo.json
echo '{"train": {"steps": "many"}}' >type.json
check "a_value_of_another_type_is_refused" says 2 type.json:1 train.steps '"many"' "an integer" -- "$heddle" train type.json
check "a_value_outside_its_limits_is_refused" says 2 train.tokens '"0"' "from 1" -- "$heddle" train --train.tokens=0
check "a_key_without_a_value_is_refused" says 2 "lacks its value" -- "$heddle" train --train.steps
check "a_missing_configuration_is_named" says 2 "none.json" "No such file" -- "$heddle" train none.json
check "missing_data_is_named" says 1 "none.txt" -- "$heddle" train config.json --data.path=none.txt
check "a_missing_file_to_inspect_is_named" says 1 "none.safetensors" -- "$heddle" inspect none.safetensors
check "inspect_wants_a_file" says 2 "want FILE" -- "$heddle" inspect
check "commands_without_configuration_refuse_keys" says 2 "unknown option --train.steps=1" -- \
    "$heddle" inspect text.txt --train.steps=1
check "a_text_is_not_taken_for_weights" says 1 text.txt -- "$heddle" inspect text.txt

# --- overrides ---
overridden() {
    "$heddle" train config.json --train.steps 9 --show-config --layout.stages=1,1 >out 2>&1 &&
        grep -q '"steps": 9' out && grep -q '"stages": \[1, 1\]' out && grep -q '"hidden": 32' out
}
check "overrides_go_before_the_file_in_both_spellings" overridden
short_names() { # memory, device and share-gpu stand for keys, in order with these
    local command
    for command in train generate sample plan; do
        "$heddle" $command --memory.budget 1GiB --memory 6GiB --device=cpu --share-gpu --show-config >out 2>&1 &&
            grep -q '"budget": 6442450944' out && grep -q '"device": "cpu"' out && grep -q '"share_gpu": true' out &&
            "$heddle" $command --memory=6GiB --memory.budget=1GiB --device auto --show-config >out 2>&1 &&
            grep -q '"budget": 1073741824' out && grep -q '"device": "auto"' out &&
            "$heddle" $command --help >out 2>&1 && grep -q -- '--memory=BYTES *memory.budget' out || return 1
    done
}
check "short_names_stand_for_keys" short_names
check "and_their_errors_name_the_keys" says 2 "command line: memory.budget" '"6gb"' "24GiB" -- "$heddle" train --memory 6gb
check "with_a_value_or_not" says 2 "--memory lacks its value (memory.budget)" -- "$heddle" train --memory
prompts_kept() {
    "$heddle" generate --prompt 'one, "two"' --prompt three --show-config >out 2>&1 &&
        grep -qF '"prompts": ["one, \"two\"", "three"]' out
}
check "prompts_keep_their_commas_and_quotes" prompts_kept
shown_again() {
    "$heddle" train config.json --show-config >shown.json &&
        "$heddle" train shown.json --show-config | cmp - shown.json >out
}
check "the_shown_configuration_loads_as_itself" shown_again

# --- many ranks, one voice, no hang ---
one_voice() { # text: a refusal of all ranks is said once
    [ "$(grep -c "$1" out)" = 1 ]
}
check "a_layout_that_does_not_fit_the_ranks_is_refused_on_all" says 2 "does not divide the 4 ranks" -- \
    "${ranks[@]}" -np 4 "$heddle" train config.json --layout.pipeline=3
check "ranks_that_fail_alike_speak_once" one_voice '^heddle: .*does not divide'
check "a_missing_file_is_said_once_by_many_ranks" says 2 none.json -- "${ranks[@]}" -np 4 "$heddle" train none.json
check "and_not_by_each_of_them" one_voice '^heddle: '
lonely() { # rank 1 alone has another configuration: the cause is seen, nobody hangs
    cat >lonely.sh <<'END'
#!/bin/sh
[ "$OMPI_COMM_WORLD_RANK" = 1 ] && exec "$1" train config.json --train.nonsense=1
exec "$1" train config.json
END
    chmod +x lonely.sh
    says 2 "rank 1: command line: unknown key train.nonsense" -- "${ranks[@]}" -np 2 ./lonely.sh "$heddle"
}
check "a_rank_that_fails_alone_is_heard" lonely
textless() { # rank 1 alone finds no text, where the ranks of a sequence agree on what they keep
    mkdir -p elsewhere
    cat >textless.sh <<'END'
#!/bin/sh
[ "$OMPI_COMM_WORLD_RANK" = 1 ] && cd elsewhere
exec "$@"
END
    chmod +x textless.sh
    says 1 "text.txt" "No such file" -- "${ranks[@]}" -np 2 ./textless.sh timeout 60 "$heddle" train --data.path=text.txt \
        --model.layers=2 --model.hidden=32 --model.heads=2 --train.tokens=32 --layout.sequence=2 --train.activations=auto \
        --memory.budget=1GiB --run.directory=textless
}
check "and_one_that_finds_no_text_where_ranks_choose_together" textless

# --- plans ---
start=$EPOCHREALTIME
check "a_plan_for_64_ranks_needs_no_MPI" says 0 "64 ranks" "no deadlock" -- \
    "$heddle" plan --model.preset=gpt2-xl --train.tokens=1024 --ranks 64 --layout.pipeline=16
seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')
echo "gpt2-xl on 64 ranks planned in $seconds s"
limit=5
[ -z "${SAN:-}" ] || limit=60 # sanitizers slow it down, and hide nothing that is measured here
check "it_takes_seconds_at_most" awk -v s="$seconds" -v most="$limit" 'BEGIN { exit s >= most }'
check "plan_writes_json_and_a_picture" says 0 ranks -- "$heddle" plan config.json --ranks 2 --layout.pipeline=2 --directory plans
check "both_are_there" test -s plans/plan.json -a -s plans/plan.svg
plan=("$heddle" plan --model.preset=gpt2-xl --ranks 2 --layout.sequence=2)
check "plan_says_in_how_many_groups_heads_change_places" says 0 "sequence 2 (heads in 1 group), 1 chunk each" -- "${plan[@]}"
check "large_exchanges_are_in_groups" says 0 "(heads in 2 groups)" -- "${plan[@]}" --train.tokens=1024 --train.micro_batch=32 --train.dtype=bf16
check "and_so_are_others_if_asked" says 0 "(heads in 4 groups)" -- "${plan[@]}" --layout.sequence_groups=4
shared=("$heddle" plan --model.preset=gpt2 --ranks 12 --layout.sequence=4 --layout.ring=2)
flops=$("$heddle" plan --model.preset=gpt2 | grep -o '[0-9.]*e+[0-9]* FLOP a step')
check "plan_says_how_sequences_and_layers_are_shared" says 0 "sequence 4 in rings of 2 (heads in 1 group) x tensor 3 (rows in 1 group)" \
    "step, ${flops:0:4}" "no deadlock" -- "${shared[@]}" --layout.tensor=3
check "and_why_they_cannot_be" says 1 "want at most 6 (key and value heads, which ranks do not share, for each of 2 sequence ranks)" -- \
    "${shared[@]}" --ranks 28 --layout.tensor=7
check "print_lists_ops" says 0 "attn.c_attn" attention -- "$heddle" plan config.json --print

too_small() { # 6 GB of weights under a limit of 2 GB for the process: what is refused was not allocated
    [ -n "${SAN:-}" ] || ulimit -v 2000000
    says 1 "needs " "the budget is 1073741824" "largest region is saved activations" "optimizer state" -- \
        "$heddle" train --data.path=text.txt --model.preset=gpt2-xl --train.tokens=1024 --memory.budget=1GiB \
        --run.directory=small
}
check "a_budget_too_small_is_refused_with_region_need_and_have" eval '(too_small)'
check "with_a_remedy" grep -qE '(layout|train|memory)\.[a-z_]+ *=' out

# --- what a run leaves ---
check "a_run_ends_well" says 0 "4 steps, loss" "everything is in run" -- "$heddle" train config.json
check "progress_without_a_terminal_is_whole_lines" test "$(grep -c $'\r' out)" = 0
check "a_run_is_described" says 0 "last step = 4" "checkpoint of step 4" "written by 1 rank" "verified: every block" \
    weights/transformer.wte.weight adam_m/ -- "$heddle" inspect run
check "a_stop_asked_for_ends_with_75" says 75 "saved in" -- \
    "$heddle" train config.json --train.stop_after=2 --run.directory=stopped
check "the_same_command_goes_on" says 0 "4 steps" -- "$heddle" train config.json --run.directory=stopped
check "and_says_if_nothing_is_left_to_do" says 0 "4 steps were done already" "everything is in stopped" -- \
    "$heddle" train config.json --run.directory=stopped
check "safetensors_are_described" says 0 "metadata config" "transformer.wte.weight" "F32" "bytes" -- \
    "$heddle" inspect "$source/tests/golden/gpt2_tiny.safetensors"

check "a_checkpoint_becomes_a_folder" says 0 "step 4 of gpt2" -- "$heddle" convert run folder
check "in_shards_if_told" says 0 "files" -- "$heddle" convert run/checkpoints/step-4 shards --shard-bytes 30kB
check "a_size_that_is_none_is_refused" says 2 "--shard-bytes is '30 bytes', want bytes such as" -- \
    "$heddle" convert run/checkpoints/step-4 other --shard-bytes '30 bytes'
check "of_nothing_too" says 2 "--shard-bytes is '0', want bytes such as" -- \
    "$heddle" convert run/checkpoints/step-4 other --shard-bytes 0
lines_on_a_terminal() {
    script -qc "'$heddle' convert run terminal" /dev/null </dev/null | tr -d '\r' >out
    grep -q "tensor 28/28" out && grep -q "^terminal: step 4 of gpt2" out
}
if script -qc true /dev/null </dev/null >/dev/null 2>&1; then
    check "on_a_terminal_progress_ends_before_what_is_written" lines_on_a_terminal
else
    echo "skipped: progress on a terminal, none can be made here"
fi
check "a_folder_that_has_a_model_is_left_alone" says 1 "holds a config.json already" -- "$heddle" convert run folder
same_text() { # Conv1D's transposition and the parts of q, k, v come back as they went
    local from
    for from in run folder shards; do
        "$heddle" generate config.json --prompt weft --generate.tokens 12 --generate.checkpoint $from >"text.$from" 2>>out ||
            return 1
    done
    [ -s text.run ] && cmp text.run text.folder >>out && cmp text.run text.shards >>out
}
check "the_folder_writes_what_the_checkpoint_writes" same_text
check "a_text_is_as_long_as_the_model_takes" says 0 "prompt 1 of 1" -- \
    "$heddle" generate --prompt weft --generate.checkpoint run
same_text_from_the_host() {
    "$heddle" generate config.json --prompt weft --generate.tokens 12 --generate.checkpoint run \
        --generate.residency=host >text.host 2>>out && cmp text.run text.host >>out
}
check "weights_on_the_host_write_the_same" same_text_from_the_host
flipped() {
    cp -r run/checkpoints/step-4 damaged
    printf '\377' | dd of=damaged/rank-0.safetensors bs=1 seek=20000 conv=notrunc 2>/dev/null
    says 1 damaged -- "$heddle" inspect damaged
}
check "a_flipped_bit_is_found" flipped
closed_pipe() { "$heddle" --man 2>out | head -n 1 >/dev/null && [ "${PIPESTATUS[0]}" = 0 ] && [ ! -s out ]; }
check "a_reader_that_has_enough_is_no_error" closed_pipe
full() { [ ! -w /dev/full ] || { "$heddle" --man >/dev/full 2>out; [ $? = 1 ] && grep -q "standard output" out; }; }
check "output_that_gets_lost_is_an_error" full
