/* test_layer_every_option.c: no setting is accepted and ignored. Generated from the table of options.
 * For every router, on several layers: another value of an option is refused, or changes an output, a
 * gradient, a loss, a statistic, a parameter, the routing or a memory figure. Exceptions are listed with
 * their reason.
 */
#include "support/layer_fixture.h"
#include "support/same_settings.h"

/* DRAWS sets of inputs are tried before a setting is called ignored: two sequences may agree by chance. */
enum { T = 48, SEQUENCE = 24, DRAWS = 3 };

/* Layers on which options are tried, each with every router; a pair that is refused is left out. */
static const char *const bases[] = {
    "",
    "num_experts 0 num_shared_experts 1",
    "expert identity",
    "expert zero num_shared_experts 1 shared_expert_gate true",
    "expert_kinds 4,identity,zero,6,4,4,4,4 dropout 0.2",
    "latent_size 4 num_shared_experts 2 output_bias true",
    "activation quick_geglu expert_bias true dropout 0.3",
    "activation relu init_scheme megatron_scaled init_std_down 0.1 router_init normal_fan_in_renorm",
    "score_function sigmoid aux_loss_coeff 0.1 z_loss_coeff 0.1 init_scheme sigma_moe",
    "num_experts 7 score_function sigmoid selection_bias true selection_bias_update_rate 0.1",
    "score_function sigmoid selection_bias true num_groups 4 group_top_k 2",
    "capacity_factor 3",
    "score_before_topk true expert_dropout 0.3 entropy_loss_coeff 0.1 importance_loss_coeff 0.1",
    "num_experts 7 capacity_factor 0.75 min_capacity 1 capacity_multiple 1 gshard_loss_coeff 0.1",
    "capacity_factor 0.75 drop_policy rank_major num_groups_outer 2",
    "routing_unit task num_tasks 2 top_k 1",
    "routing_unit sequence seq_aux_loss_coeff 0.1 global_aux_loss_coeff 0.1",
    "sinkhorn_variant megatron top_k 1",
    "sinkhorn_variant sigma_moe score_function sigmoid",
    "second_policy_train threshold second_policy_eval random fake_noise 0",
    "fake_noise 0.5 fake_skip_first 1",
};

/* Accepted though nothing changes, and why. */
/* clang-format off */
static const struct {
    const char *key, *base, *reason; /* base: a word of it; "": any */
} exceptions[] = {
    {"moe.pad_to_capacity", "capacity_factor 0.75", "nothing to pad where all experts are full"},
    {"moe.drop_policy", "capacity_factor 3", "nobody to choose where nothing is dropped"},
    {"moe.score_before_topk", "score_function sigmoid",
     "a sigmoid sees one logit: before or after is the same"},
    {"moe.init_scheme", "megatron_scaled", "it is normal with the init_std_down that a whole model asks for"},
    {"moe.weight_apply", "", "hidden and output are the same numbers by definition"},
    {"moe.expert_hidden_size", "expert", "a size: it always has a value, also where kinds have theirs"},
    {"moe.expert_hidden_size", "num_shared", "a size: it always has a value"},
};
/* clang-format on */

static bool excepted(const char *key, const char *base) {
    for (size_t i = 0; i < sizeof exceptions / sizeof *exceptions; ++i)
        if (strcmp(exceptions[i].key, key) == 0 && strstr(base, exceptions[i].base)) return true;
    return false;
}

/* FNV-1a over everything a layer shows. */
static void mix(uint64_t *hash, const void *data, size_t bytes) {
    const unsigned char *byte = data;
    for (size_t i = 0; i < bytes; ++i) *hash = (*hash ^ byte[i]) * 1099511628211u;
}

static void mix_params(moe_ctx *ctx, const moe_layer *layer, uint64_t *hash) {
    for (int32_t i = 0; i < moe_layer_param_count(layer); ++i) {
        moe_param param = {.size = sizeof param};
        must(ctx, moe_layer_param(layer, i, &param));
        const size_t bytes =
            (size_t)(param.dim[0] * param.dim[1] * param.dim[2]) * moe_dtype_bytes(param.dtype);
        mix(hash, param.name, strlen(param.name));
        mix(hash, param.dim, sizeof param.dim);
        mix(hash, param.value, bytes);
        if (param.grad) mix(hash, param.grad, bytes);
    }
}

static void mix_stats(const moe_stats *s, uint64_t *hash) {
    const int64_t count[] = {s->n_tokens, s->n_routed, s->n_kept, s->n_dropped, s->n_dead};
    const double real[] = {
        s->loss,        s->aux_loss,          s->z_loss,          s->seq_aux_loss,  s->global_aux_loss,
        s->gshard_loss, s->second_place_loss, s->importance_loss, s->load_loss,     s->entropy_loss,
        s->load_cv,     s->load_max,          s->load_entropy,    s->router_entropy};
    mix(hash, count, sizeof count);
    mix(hash, real, sizeof real);
}

static void mix_routing(moe_ctx *ctx, const moe_layer *layer, uint64_t *hash) {
    moe_routing_view view = {.size = sizeof view};
    if (moe_layer_get_desc(layer)->num_experts == 0) return;
    must(ctx, moe_layer_routing(layer, &view));
    mix(hash, &view.top_k, sizeof view.top_k);
    mix(hash, &view.capacity, sizeof view.capacity);
    if (view.selection) mix(hash, view.selection, (size_t)(T * view.n_experts) * moe_dtype_bytes(view.dtype));
    mix(hash, view.row_of, (size_t)(T * view.top_k) * sizeof *view.row_of);
    mix(hash, view.expert, (size_t)(T * view.top_k) * sizeof *view.expert);
    mix(hash, view.weight, (size_t)(T * view.top_k) * moe_dtype_bytes(view.dtype));
}

/* Two optimizer steps and an inference; whatever they show goes into the hash. */
static void run_layer(moe_ctx *ctx, moe_layer *layer, uint32_t draw, uint64_t *hash) {
    const moe_layer_desc *d = moe_layer_get_desc(layer);
    const int32_t task[T / SEQUENCE] = {d->num_tasks > 1, 0};
    moe_mat x = test_random(d->dtype, T, d->d_model, 2 * draw + 1),
            y = test_output(d->dtype, T, d->output_size);
    moe_mat dy = test_random(d->dtype, T, d->output_size, 2 * draw + 2),
            dx = test_output(d->dtype, T, d->d_model);
    moe_call call = {
        .size = sizeof call, .sequence_length = SEQUENCE, .task = d->num_tasks > 0 ? task : NULL};
    for (int i = 0; i < 4; ++i) {
        moe_stats stats = {.size = sizeof stats};
        call.mode = i < 3 ? MOE_TRAIN : MOE_INFER;
        call.step = (uint64_t)i;
        must(ctx, moe_layer_forward(layer, x, y, &call, &stats));
        mix(hash, y.data, test_bytes(y));
        mix_stats(&stats, hash);
        mix_routing(ctx, layer, hash);
        if (i == 3) break;
        must(ctx, moe_layer_backward(layer, x, dy, dx));
        mix(hash, dx.data, test_bytes(dx));
        if (i > 0) must(ctx, moe_layer_end_step(layer, NULL));
    }
    mix_params(ctx, layer, hash);
    free(x.data), free(y.data), free(dy.data), free(dx.data);
}

/* False where the layer is refused. `complete`: with every default filled in. */
static bool fingerprint(moe_ctx *ctx, const moe_layer_desc *desc, uint32_t draw, moe_layer_desc *complete,
                        uint64_t *hash) {
    moe_layer *layer = NULL;
    *hash = 14695981039346656037u;
    if (moe_layer_create(ctx, desc, &layer) != MOE_OK) {
        if (!*moe_ctx_error(ctx)) fail_msg("refused without a reason");
        return false;
    }
    *complete = *moe_layer_get_desc(layer);
    complete->expert = desc->expert ? desc->expert : "ffn"; /* the layer's own strings go with it */
    complete->expert_kinds = desc->expert_kinds ? desc->expert_kinds : "";
    const moe_layer_bytes bytes = test_measure(ctx, layer, T);
    mix(hash, &bytes, sizeof bytes);
    must(ctx, moe_layer_reserve(layer, T, MOE_TRAIN));
    test_fill_biases(ctx, layer, 0.1); /* none decides by itself */
    run_layer(ctx, layer, draw, hash);
    moe_layer_destroy(layer);
    return true;
}

/* `text` is cut into words, which the descriptor may point to. */
static moe_layer_desc base_desc(char *text, const char *router) {
    moe_layer_desc d = {.size = sizeof d,
                        .d_model = 6,
                        .num_experts = 8,
                        .expert_hidden_size = 4,
                        .router_type = router,
                        .init_std = 0.6f};
    for (char *key = strtok(text, " "); key; key = strtok(NULL, " ")) {
        moe_error error;
        if (moe_layer_desc_set(&d, key, strtok(NULL, " "), &error) != MOE_OK) fail_msg("%s", error.text);
    }
    return d;
}

/* The values tried for a row; NULL ends them. */
static const char *const *values_of(const moe_option *row) {
    static const char *const truth[] = {"true", "false", NULL};
    static const char *const whole[] = {"1", "2", "3", "5", "7", "40", NULL};
    static const char *const real[] = {"0.03", "0.4", "0.9", "1.7", "40", NULL};
    static const char *const kinds[] = {"3,3,3,3,3,3,3,3", "4,4,identity,zero,4,4,4,4", "2,4", NULL};
    static const char *const expert[] = {"identity", "zero", "ffn", NULL};
    static const char *const activation[] = {"relu", "gelu", NULL};
    if (row->choices) return row->choices;
    if (row->type == MOE_OPT_BOOL) return truth;
    if (row->type == MOE_OPT_INT) return whole;
    if (row->type == MOE_OPT_FLOAT) return real;
    if (strcmp(row->key, "moe.expert_kinds") == 0) return kinds;
    return strcmp(row->key, "moe.expert") == 0 ? expert : activation;
}

/* Tries the values of one row on one set of inputs; counts those that are accepted and say another thing than
 * the complete base, and says whether any of them changed a thing. */
static bool has_effect(moe_ctx *ctx, const moe_option *row, const moe_layer_desc *base,
                       const moe_layer_desc *complete, uint32_t draw, uint64_t before, int *accepted) {
    for (const char *const *value = values_of(row); *value; ++value) {
        moe_layer_desc d = *base, after;
        uint64_t hash;
        if (moe_layer_desc_set(&d, row->key, *value, NULL) != MOE_OK ||
            !fingerprint(ctx, &d, draw, &after, &hash) || same_setting(row, complete, &after))
            continue;
        ++*accepted;
        if (hash != before) return true;
    }
    return false;
}

/* The same on inputs of other draws: what two sequences did not show by chance. */
static bool has_effect_elsewhere(moe_ctx *ctx, const moe_option *row, const moe_layer_desc *base) {
    moe_layer_desc complete;
    uint64_t before;
    int accepted = 0;
    for (uint32_t draw = 1; draw < DRAWS; ++draw)
        if (fingerprint(ctx, base, draw, &complete, &before) &&
            has_effect(ctx, row, base, &complete, draw, before, &accepted))
            return true;
    return false;
}

static int try_base(moe_ctx *ctx, const char *settings, const char *router, size_t *tried, size_t *effects) {
    int ignored = 0;
    const moe_option *row;
    char text[256];
    snprintf(text, sizeof text, "%s", settings);
    const moe_layer_desc base = base_desc(text, router);
    moe_layer_desc complete;
    uint64_t before;
    if (!fingerprint(ctx, &base, 0, &complete, &before)) return 0;
    for (size_t i = 0; (row = moe_layer_option_at(i)); ++i) {
        int accepted = 0;
        const bool effect = has_effect(ctx, row, &base, &complete, 0, before, &accepted);
        ++*tried;
        *effects += effect;
        if (effect || accepted == 0 || excepted(row->key, settings)) continue;
        if (has_effect_elsewhere(ctx, row, &base)) continue;
        fprintf(stderr, "%s: accepted and ignored by router_type %s of '%s'\n", row->key, router, settings);
        ++ignored;
    }
    return ignored;
}

static void every_option_has_an_effect_or_is_refused(void **state) {
    (void)state;
    moe_ctx *ctx = test_ctx("ref", 1);
    size_t tried = 0, effects = 0;
    const moe_option *row = moe_layer_option_find("moe.router_type");
    int ignored = 0;
    for (size_t b = 0; b < sizeof bases / sizeof *bases; ++b)
        for (const char *const *router = row->choices; *router; ++router)
            ignored += try_base(ctx, bases[b], *router, &tried, &effects);
    assert_int_equal(ignored, 0);
    assert_true(tried > 5000 && effects > 1000);
    moe_ctx_destroy(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_has_an_effect_or_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
