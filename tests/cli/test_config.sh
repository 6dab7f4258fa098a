#!/bin/bash
# Settings: who wins, where a value comes from, what is wrong in a file and where.
. "$(dirname "$0")/support/common.sh"
mkdir -p xdg/moekit
value() { "$MOEKIT" config show "$@" 2>&1 | sed -n 's/^moe\.num_experts=//p'; }
want() { # VALUE ARGUMENT...
    local want=$1 got
    shift
    got=$(value "$@")
    [ "$got" = "$want" ] || complain "moe.num_experts is '$got', not '$want', with: $*"
}

# each stage over the one before
want 8
echo 'moe: {num_experts: 10}' >xdg/moekit/config.yaml
want 10
echo 'moe: {num_experts: 11, top_k: 1}' >first.yaml
want 11 first.yaml
echo 'num_moe_experts: 12' >second.yaml
want 12 first.yaml second.yaml
want 11 second.yaml first.yaml
export MOEKIT_MOE_NUM_EXPERTS=13
want 13 first.yaml
want 14 first.yaml moe.num_experts=14
want 14 first.yaml --moe.num_experts 14
want 14 first.yaml --moe.num_experts=14
want 14 first.yaml --moe.num-experts=14
want 14 first.yaml --set moe.num_experts=14
want 14 first.yaml --num_moe_experts 14
want 15 first.yaml moe.num_experts=14 moe.num_experts=15
expect 0 "$MOEKIT" config show --origin first.yaml moe.activation=gelu
says out '^MOEKIT_MOE_NUM_EXPERTS +moe.num_experts=13'
says out '^first.yaml:1 +moe.top_k=1'
says out '^command line +moe.activation=gelu'
says out '^default +moe.capacity_factor=0'
expect 0 "$MOEKIT" config show --changed first.yaml
says out '^moe.top_k=1'
grep -q 'capacity_factor' out && complain '--changed shows a default'
unset MOEKIT_MOE_NUM_EXPERTS
rm xdg/moekit/config.yaml

# a flag may stand alone before another option
expect 0 "$MOEKIT" config show --moe.expert_bias --changed
says out '^moe.expert_bias=true'

expect 0 "$MOEKIT" config show --json first.yaml
json out
expect 0 "$MOEKIT" config options --json
json out
expect 0 "$MOEKIT" config explain num_moe_experts moe.drop_policy
says out '^moe.num_experts'
says out 'probs, position'
says out 'MOEKIT_MOE_DROP_POLICY'
expect 0 "$MOEKIT" config explain --json moe.top_k
json out
expect 0 "$MOEKIT" config explain hidden_act moe.moe_router_load_balancing_type
says out '^hidden_act$'
says out 'gelu: moe\.activation geglu_exact'
says out 'sinkhorn: moe\.router_type sinkhorn'
expect 0 "$MOEKIT" config explain --json hidden_act gate_precision
json out
expect 2 "$MOEKIT" config explain nonsense.key
says err 'unknown key'
expect 2 "$MOEKIT" config explode
says err 'show, explain, check or options'

# one setting under two names, settings without a value, sections and far names
printf 'moe:\n  num_experts: 8\nnum_moe_experts: 4\n' >twice.yaml
expect 2 "$MOEKIT" config check twice.yaml
says err 'twice\.yaml:3:[0-9]+: num_moe_experts sets moe\.num_experts, which moe.num_experts of line 2 has set already'
for nothing in null '~' '' '""'; do
    printf 'moe:\n  top_k: %s\n' "$nothing" >null.yaml
    expect 2 "$MOEKIT" config check null.yaml
    says err 'null\.yaml:2:[0-9]+: moe\.top_k has no value'
done
expect 2 "$MOEKIT" config show moe.top_k=
says err 'has no value'
echo 'moe: 3' >section.yaml
expect 2 "$MOEKIT" config check section.yaml
says err 'section\.yaml:1:[0-9]+: moe is a section'
echo 'xyzzy: 3' >far.yaml
expect 2 "$MOEKIT" config check far.yaml
says err "unknown key 'xyzzy'"
grep -q nearest err && complain 'a far key was suggested'
expect 2 "$MOEKIT" config show moe.top_k
says err 'moe\.top_k=VALUE\?'

# what is wrong in a file: its name, the line, the column, what was probably meant
printf 'moe:\n  num_experts: 8\n  top_kk: 2\n' >unknown.yaml
expect 2 "$MOEKIT" config check unknown.yaml
says err 'unknown\.yaml:3:[0-9]+: .*moe\.top_k'
printf 'moe:\n  num_experts: many\n' >word.yaml
expect 2 "$MOEKIT" config check word.yaml
says err "word\.yaml:2:[0-9]+: .*'many' is not a whole number"
printf 'moe:\n  num_experts: -3\n' >range.yaml
expect 2 "$MOEKIT" config check range.yaml
says err 'range\.yaml:2:.*outside'
printf 'moe: {num_experts: 8\ntrain: [\n' >broken.yaml
"$MOEKIT" config check broken.yaml 2>err
code=$?
[ $code -eq 2 ] || [ $code -eq 3 ] || complain "a broken YAML file is exit code 2 or 3, not $code"
says err 'broken\.yaml:[0-9]+:[0-9]+'
# a dry run makes nothing, and so needs no directory
expect 0 "$MOEKIT" train --dry-run moe.num_experts=4
says out '^parameters '
echo 'moe: {expert: bogus}' >kind.yaml
expect 2 "$MOEKIT" config check kind.yaml
says err "moe\.expert: 'bogus'"
echo 'moe: {expert_kinds: "64,64,64,64,64,64,identity,foo"}' >kinds.yaml
expect 2 "$MOEKIT" config check kinds.yaml
says err "'foo'"
echo 'moe: {expert_kinds: "64,64,64,64,64,64,identity,zero"}' >kinds.yaml
expect 0 "$MOEKIT" config check kinds.yaml
printf 'moe: {num_experts: 2, top_k: 3}\n' >combination.yaml
expect 2 "$MOEKIT" config check combination.yaml
says err 'top_k.*3.*2'
expect 3 "$MOEKIT" config check missing.yaml
says err 'missing\.yaml'
expect 0 "$MOEKIT" config check first.yaml
says out 'first.yaml: good'
# names of other systems with values of their own: the same on the command line and in the environment
for setting in moe.hidden_act=gelu hidden_act=gelu --moe.hidden_act=gelu --hidden-act=gelu; do
    expect 0 "$MOEKIT" config show --changed "$setting"
    says out '^moe\.activation=geglu_exact$'
done
expect 0 "$MOEKIT" config show --changed --moe.hidden_act gelu
says out '^moe\.activation=geglu_exact$'
expect 0 "$MOEKIT" config show --changed moe.moe_router_load_balancing_type=sinkhorn
says out '^moe\.router_type=sinkhorn$'
expect 0 "$MOEKIT" config show moe.moe_expert_capacity_factor=null
says out '^moe\.capacity_factor=0$'
expect 2 "$MOEKIT" config show hidden_act=tanh
says err "hidden_act: 'tanh' is not one of: silu"
for setting in MOEKIT_MOE_HIDDEN_ACT MOEKIT_HIDDEN_ACT; do
    expect 0 env $setting=gelu "$MOEKIT" config show --origin
    says out "^$setting +moe\.activation=geglu_exact$"
done
for setting in MOEKIT_MOE_K MOEKIT_MOE_MOE_ROUTER_TOPK MOEKIT_MOE_ROUTER_TOPK MOEKIT_MODEL_MOE_ROUTER_TOPK; do
    expect 0 env $setting=3 "$MOEKIT" config show --origin
    says out "^$setting +moe\.top_k=3$"
done
expect 0 env MOEKIT_MOE_PRESET=deepseek_v3 MOEKIT_MOE_NUM_GROUPS=4 MOEKIT_MOE_EXPERT_BIAS=1 "$MOEKIT" config show
says out '^moe\.num_groups=4$'
says out '^moe\.expert_bias=true$'

# sigma-MoE's two keys of scoring, in any order and at any level
for keys in 'selection_mode: sigmoid, activation_after_topk: true' 'activation_after_topk: true, selection_mode: sigmoid'; do
    echo "moe: {$keys}" >sigma.yaml
    expect 0 "$MOEKIT" config show sigma.yaml
    says out '^moe\.score_function=sigmoid$'
    says out '^moe\.score_before_topk=false$'
done
expect 0 "$MOEKIT" config show activation_after_topk=true selection_mode=sigmoid
says out '^moe\.score_before_topk=false$'
expect 0 env MOEKIT_ACTIVATION_AFTER_TOPK=true MOEKIT_SELECTION_MODE=sigmoid "$MOEKIT" config show
says out '^moe\.score_before_topk=false$'
expect 0 "$MOEKIT" config show selection_mode=sigmoid
says out '^moe\.score_before_topk=true$'

# DeepSeek-V3's router balances without a loss, unless its file says otherwise
echo '{"moe": {"aux_loss_alpha": 0.003, "topk_method": "noaux_tc"}, "torch_dtype": "bfloat16"}' >v3.yaml
expect 0 "$MOEKIT" config show v3.yaml
says out '^moe\.selection_bias_update_rate=0\.001$'
says out '^moe\.aux_loss_coeff=0\.003$'
says out '^moe\.z_loss_coeff=0$'
says out '^model\.dtype=bf16$'
echo 'topk_method: noaux_tc' >v3.yaml
expect 0 "$MOEKIT" config show v3.yaml
says out '^moe\.aux_loss_coeff=0$'

# null is what its system means by it, and a refusal names the setting
printf 'moe: {moe_z_loss_coeff: null, moe_aux_loss_coeff: null, mlp_only_layers: []}\nhead_dim: null\n' >nemo.yaml
expect 0 "$MOEKIT" config show nemo.yaml torch_dtype=torch.float32
says out '^moe\.z_loss_coeff=0$'
says out '^model\.dtype=f32$'
printf 'model: {dense_layers: [0, 3], qk_layernorm: true, clip_qkv: null}\n' >layers.yaml
expect 0 "$MOEKIT" config show layers.yaml
says out '^model\.dense_layers=0,3$'
says out '^model\.qk_norm=head$'
says out '^model\.clip_qkv=0$'
echo 'moe: {moe_router_load_balancing_type: [aux_loss, seq_aux_loss]}' >list.yaml
expect 2 "$MOEKIT" config check list.yaml
says err "list\.yaml:1:.*\(NeMo\) cannot be 'aux_loss,seq_aux_loss' here; set aux_loss_coeff"

# a variable that names nothing is refused, like a key that does
expect 2 env MOEKIT_MOE_TOPK=3 "$MOEKIT" config show
says err "MOEKIT_MOE_TOPK: unknown key 'moe.topk'; the nearest is 'moe.top_k'"
expect 2 env MOEKIT_TRAIN_STEP=9 "$MOEKIT" config show
says err "MOEKIT_TRAIN_STEP: .*'train.steps'"
expect 2 env MOEKIT_MOE_K=3 MOEKIT_MOE_TOP_K=2 "$MOEKIT" config show
says err 'MOEKIT_MOE_TOP_K: sets moe.top_k, which MOEKIT_MOE_K has set already'
expect 2 env MOEKIT_NOISY_GATING=true MOEKIT_MOE_ROUTER_TYPE=hash "$MOEKIT" config show
says err 'MOEKIT_NOISY_GATING: sets moe.router_type, which MOEKIT_MOE_ROUTER_TYPE has set already'
expect 0 env MOEKIT_SELECTION_MODE=sigmoid MOEKIT_SOFTMAX_BEFORE_TOPK=false "$MOEKIT" config show
says out '^moe\.score_before_topk=false$'
for keys in 'router_type: random, noisy_gating: false, fake_noise: 0.10, fake_gate_noise: 0.1' 'noisy_gating: false, moe_router_force_load_balancing: true, router_type: random'; do
    echo "moe: {$keys}" >same.yaml
    expect 0 "$MOEKIT" config show same.yaml
    says out '^moe\.router_type=random$'
done
expect 0 env MOEKIT_ISA=ref MOEKIT_NUM_THREADS=1 MOEKIT_TEST_SEED=3 MOEKIT_PYTHON=python3 "$MOEKIT" config show --changed
silent out
expect 2 env MOEKIT_TRAIN_STEPS=soon "$MOEKIT" config show
says err 'MOEKIT_TRAIN_STEPS'
finish
