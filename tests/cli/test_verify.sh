#!/bin/bash
# verify, bench and doctor: good layers pass, a limit of nothing fails with 5, bad descriptions with 2.
. "$(dirname "$0")/support/common.sh"
unset OMP_NUM_THREADS

expect 0 "$MOEKIT" verify grad
says out '^gate.weight .*ok'
says out '^x .*ok'
expect 0 "$MOEKIT" verify grad --moe.activation gelu --moe.expert_bias --moe.num_shared_experts 1 moe.capacity_factor=1
says out '^shared.down.bias .*ok'
expect 0 "$MOEKIT" verify grad --json moe.score_before_topk=true moe.norm_topk_prob=true
json out
says out '"passed":true'
expect 5 "$MOEKIT" verify grad --limit 0
says out 'FAILED'
says err 'differences'
expect 2 "$MOEKIT" verify grad moe.top_k=9 moe.num_experts=3
says err 'top_k'
expect 2 "$MOEKIT" verify grad --moe.activation tanh
says err 'swiglu'
expect 0 "$MOEKIT" verify grad moe.hidden_act=gelu moe.k=3 --moe.num_moe_experts 4
expect 2 "$MOEKIT" verify grad moe.hidden_act=tanh
says err "'tanh' is not one of: silu"
expect 0 "$MOEKIT" verify grad moe.num_experts=16 moe.preset=deepseek_v3
says out '^shared.down.weight .*ok'
expect 0 "$MOEKIT" verify grad moe.preset=t2t_top2 moe.num_groups_outer=2 moe.num_experts=4 moe.top_k=2
expect 0 "$MOEKIT" verify grad moe.z_loss_coeff=1e6
expect 2 "$MOEKIT" verify grad moe.d_model=0
says err 'moe\.d_model: 0'
expect 2 "$MOEKIT" verify grad --preset deepseek_v3
says err 'moe\.num_groups: 8 groups do not divide num_experts'
expect 2 "$MOEKIT" verify
says err 'verify grad'
expect 2 "$MOEKIT" verify grad train.steps=3
says err "unknown option 'train.steps'"

for isa in ref avx2 avx512; do
    "$MOEKIT" verify determinism --isa $isa >out 2>err
    code=$?
    if [ $code -eq 8 ]; then
        echo "skipped: $isa: $(cat err)"
        continue
    fi
    [ $code -eq 0 ] || complain "verify determinism --isa $isa: exit code $code: $(cat out err)"
    says out '^4 threads +ok'
    says out '^each token alone and in the batch +ok'
done
expect 0 "$MOEKIT" verify determinism --json moe.capacity_factor=1.0 moe.input_jitter_eps=0.1
json out
expect 0 "$MOEKIT" verify determinism --dtype bf16 moe.num_shared_experts=1 moe.shared_expert_gate=true
says out '^each token alone and in the batch +ok'
expect 2 "$MOEKIT" verify determinism --dtype f16
says err "'f16'"
expect 2 "$MOEKIT" verify determinism --isa sparc
says err 'sparc'

expect 0 "$MOEKIT" bench layer e4,t64,d32,n32,k2 --repeat 1
says out '^forward and backward .*GFLOP/s'
expect 0 "$MOEKIT" bench gemm e4,t64,d32,n32,k2,skew=zipf1.0,act=gelu --repeat 1 --json
json out
expect 0 "$MOEKIT" bench layer skew=even,e4,t64,d32,n32,k2,shared1 --repeat 1 --json # begins with a word=
says out '"load_max":1,'
expect 2 "$MOEKIT" bench step skew=even # of files: a setting
says err "unknown option 'skew'"
expect 0 "$MOEKIT" bench layer e4,t64,d32,n32,k2 e4,t16,d32,n32,k1,skew=even --repeat 2 --inference
says out '^layer e4,t64,'
says out '^layer e4,t16,'
says out '^decode, 1 token .*of reading'
says out '^router and plan .*of the forward'
expect 0 "$MOEKIT" bench layer e4,t64,d128,n128,k2,int8,bf16 --repeat 1 --json
json out
says out '"kernel":"gemm_[a-z]+__'
# how gradients are kept is told, and its bytes are those that move: added to in f32 8 a number, stored 4, in bf16 2
# (of 4 experts of 3 * 32 * 32, beside 53248 of weights, tokens and Z)
for kept in add:151552 store:102400 bf16:77824; do
    how=${kept%:*}
    expect 0 "$MOEKIT" bench layer e4,t64,d32,n32,k2,skew=even,bf16 --gradients "$how" --repeat 1 --json
    says out "\"gradients\":\"$how\""
    awk -F'"what":"backward",' -v want="${kept#*:}" '{
        split($2, field, /[:,]/) # "ms", its number, ..., "gbs", its number
        got = field[2] * field[10] * 1e6
        exit !(field[9] == "\"gbs\"" && got > want * .9999 && got < want * 1.0001)
    }' out ||
        complain "--gradients $how: backward does not move ${kept#*:} bytes"
done
expect 0 "$MOEKIT" bench layer e4,t64,d32,n32,k2 --gradients store --repeat 1
says out 'gradients: store; busiest'
expect 0 "$MOEKIT" bench layer e4,t64,d32,n32,k2 --inference --repeat 1
grep -q gradients out && complain 'inference has no gradients to tell of'
for words in 'gemm --gradients store' 'e4,t64,d32,n32,k2 --gradients add' 'step --gradients bf16' \
    'presets --gradients store' 'layer e4,t64,d32,n32,k2 --inference --gradients store'; do
    expect 2 "$MOEKIT" bench $words
    says err "^moekit.*--gradients is of the backward of 'layer'"
done
expect 2 "$MOEKIT" bench layer e4,t64,d32,n32,k2 --gradients bf16
says err 'gradients bf16 is of bf16 layers'
expect 2 "$MOEKIT" bench layer e4,t64,d128,n128,k2,int8 --gradients store
says err "'int8' packs the experts"
expect 2 "$MOEKIT" bench layer --gradients half
says err "'half' is not add, store or bf16"
expect 2 "$MOEKIT" bench layer e4,k5
says err 'k from 1 to e'
expect 2 "$MOEKIT" verify grda
says err "'grda' is no proof"
expect 2 "$MOEKIT" bench layer mixtrall
says err "did you mean 'mixtral'"
# a sign of life, for terminals alone
if command -v script >/dev/null; then
    script -qec "'$MOEKIT' bench layer e4,t64,d32,n32,k2 --repeat 2 --inference" typed >/dev/null </dev/null
    says typed 'drawing 0\.00 G weights'
    says typed 'run 2 of 2'
fi
# no share of what memory gives is far above all of it
expect 0 "$MOEKIT" bench layer e2,t64,d512,n512,k2 --inference --repeat 3
[ "$(sed -nE 's/.* ([0-9]+)% of reading.*/\1/p' out | sort -n | tail -n 1)" -gt 110 ] 2>/dev/null &&
    complain "more than memory gives: $(cat out)"
# what does not fit is told before it is taken: whether it is the weights or the tokens
expect 4 "$MOEKIT" bench layer e4096,d65536,n65536,t16
says err 'the weights and their gradients of this layer take 393216\.0 GiB.* or --inference would fit sooner'
expect 4 "$MOEKIT" bench layer e2,t16777216,d16384,n32,k1 --inference
says err 'has of 16777216 tokens takes .*fewer tokens would fit'
expect 4 "$MOEKIT" bench gemm e2,t16777216,d16384,n32,k1 --inference
expect 2 "$MOEKIT" bench layer e16777216
says err 'num_experts'
expect 2 "$MOEKIT" bench layer e8,wide
says err "'wide'"
expect 2 "$MOEKIT" bench layer e8,saved=mxfp8,int4
says err 'saved=mxfp8 is of what training keeps'
expect 2 "$MOEKIT" bench layers
says err "'layer' or 'gemm'"

expect 0 "$MOEKIT" doctor -v
for kernel in $(sed -n 's/^MOEI_KERNEL(\([a-z_]*\),.*/\1/p' "$tree/src/kernel/kernel.def" | sort -u); do
    says out "^kernel $kernel +[a-z]"
done
says out '^GPU +(unused: |layers run on it, kernels )'
says out '^kernel gemm_rows +gemm_rows__'
says out '^all is well'
expect 0 "$MOEKIT" doctor --json
json out
expect 1 env MOEKIT_ISA=sparc "$MOEKIT" doctor
says out 'off: .*sparc'
expect 1 env MOEKIT_NUM_THREADS=1000 "$MOEKIT" doctor
says out 'more threads than cores'
finish
