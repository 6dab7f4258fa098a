/* fake_run.h: writes a run directory as a training would leave it, from a few smooth functions and noise.
 * Experts of early layers follow tokens, the last layer follows context; loads even out over the steps.
 * Source: docs/run-directory.md.
 */
#ifndef FAKE_RUN_H
#define FAKE_RUN_H

#include "unit/format/scratch.h"

#include <math.h>

typedef struct fake_run {
    const char *dir;
    int layers, experts, steps;
    int load_every, eval_every;
    bool drops; /* the first layer drops rows, and its last expert dies half-way */
    uint64_t seed;
    bool tokenizer; /* tokens are not bytes; only some have a text in eval.json */
} fake_run;

static inline double fake_noise(fake_run *run) { /* in [-1, 1) */
    return (double)(scratch_random(&run->seed) >> 11) / 4503599627370496.0 - 1;
}

static inline FILE *fake_open(const fake_run *run, const char *name) {
    char path[1000];
    snprintf(path, sizeof path, "%s/%s", run->dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    return file;
}

/* Rows of an expert in one step, of 4096 x 2 in all, before noise. */
static inline double fake_load(const fake_run *run, int layer, int expert, int step) {
    double decay = exp(-step / (0.15 * run->steps));
    double share = 1 + 0.9 * decay * sin(2.1 * expert + 1.3 * layer) + 0.16 * cos(1.7 * expert * (layer + 1));
    bool dead = run->drops && layer == 0 && expert == run->experts - 1 && step > run->steps / 2;
    return dead ? 0 : 8192.0 / run->experts * fmax(share, 0.02);
}

static inline void fake_metrics(fake_run *run) {
    FILE *file = fake_open(run, "metrics.jsonl");
    for (int step = 1; step <= run->steps; ++step) {
        double t = (double)step / run->steps, warm = fmin(1, 20.0 * t);
        double loss = 1.32 + 3.9 * exp(-25 * t) + 0.9 * exp(-4 * t) + 0.05 * fake_noise(run);
        fprintf(file,
                "{\"schema\":1,\"step\":%d,\"tokens\":%lld,\"loss\":%.6f,\"aux_loss\":%.5f,\"z_loss\":%.5f,",
                step, 4096LL * step, loss, 1.01 + 0.25 * exp(-9 * t) + 0.01 * fake_noise(run),
                4.2 + t + 0.1 * fake_noise(run));
        fprintf(file, "\"lr\":%.8f,\"grad_norm\":%.5f,\"tokens_per_second\":%.1f,\"elapsed_s\":%.3f,",
                3e-3 * warm * (0.55 + 0.45 * cos(3.14159 * t)),
                0.6 + 2.5 * exp(-20 * t) + 0.2 * fabs(fake_noise(run)), 41000 + 2500 * fake_noise(run),
                0.1 * step);
        if (step % run->eval_every == 0)
            fprintf(file, "\"eval_bits_per_byte\":%.4f,\"layers\":[", (loss + 0.06) / 0.693147);
        else
            fprintf(file, "\"eval_bits_per_byte\":null,\"layers\":[");
        for (int l = 0; l < run->layers; ++l) {
            double cv = 0.12 + 0.03 * l / run->layers + 0.6 * exp(-t / 0.15) + 0.02 * fake_noise(run);
            fprintf(file,
                    "%s{\"layer\":%d,\"experts\":%d,\"aux_loss\":1.02,\"z_loss\":4.3,\"load_cv\":%.4f,\"load_"
                    "max\":%.4f,"
                    "\"load_entropy\":%.4f,\"router_entropy\":%.4f,\"dropped\":%.5f,\"dead\":%d}",
                    l ? "," : "", l, run->experts, cv, 1 + 1.7 * cv, 1 - 0.2 * cv * cv,
                    1.2 + 0.8 * exp(-3 * t) + 0.15 * sin(l + 1.0),
                    run->drops && l == 0 ? 0.04 * exp(-5 * t) : 0.0,
                    run->drops && l == 0 && 2 * step > run->steps);
        }
        fprintf(file, "]}\n");
    }
    fclose(file);
}

static inline void fake_put(FILE *file, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) fputc((int)(value >> 8 * i & 255), file);
}

static inline void fake_load_bin(fake_run *run) {
    FILE *file = fake_open(run, "load.bin");
    fwrite("MOELOAD1", 1, 8, file);
    fake_put(file, (uint64_t)run->layers, 4);
    for (int l = 0; l < run->layers; ++l) fake_put(file, (uint64_t)run->experts, 4);
    for (int step = run->load_every; step <= run->steps; step += run->load_every) {
        fake_put(file, (uint64_t)step, 8);
        for (int l = 0; l < run->layers; ++l) {
            for (int e = 0; e < run->experts; ++e) {
                double rows = fake_load(run, l, e, step) * run->load_every * (1 + 0.08 * fake_noise(run));
                fake_put(file, (uint64_t)rows, 8);
            }
            for (int e = 0; e < run->experts; ++e) fake_put(file, run->drops && l == 0 && e < 2 ? 50 : 0, 8);
        }
    }
    fclose(file);
}

static inline void fake_eval(fake_run *run) {
    static const char tokens[] = " etaoinshrdlucmfywgpbvkETAOINS.,;:\n'<&\t\xe9";
    FILE *file = fake_open(run, "eval.json");
    fprintf(
        file,
        "{\"schema\":1,\"checkpoint\":\"checkpoints/step-%08d\",\"text\":\"heldout.txt\","
        "\"text_sha256\":\"60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752\",\"bytes\":"
        "440000,"
        "\"bits_per_byte\":1.982,\"seconds\":3.1,\"baselines\":{\"gzip\":2.37,\"bzip2\":1.70,\"xz\":1.78},"
        "\"layers\":[",
        run->steps);
    for (int l = 0; l < run->layers; ++l) {
        double depth = run->layers > 1 ? (double)l / (run->layers - 1) : 0,
               entropy = 0.96 * log2(run->experts);
        fprintf(file,
                "%s{\"layer\":%d,\"experts\":%d,\"top_k\":%d,\"dropped\":%g,\"load_cv\":%.3f,\"router_"
                "entropy\":%.3f,"
                "\"expert_entropy_bits\":%.4f,\"mi_token_bits\":%.4f,\"mi_position_bits\":%.4f,"
                "\"mi_previous_bits\":%.4f,\"load\":[",
                l ? "," : "", l, run->experts, run->experts > 1 ? 2 : 1, run->drops && l == 0 ? 0.0016 : 0,
                0.12 + 0.05 * depth, 1.3 - 0.2 * depth, entropy, entropy * (0.62 - 0.5 * depth),
                entropy * 0.004 * (1 + depth), entropy * (0.08 + 0.2 * depth));
        for (int e = 0; e < run->experts; ++e)
            fprintf(file, "%s%.0f", e ? "," : "", fake_load(run, l, e, run->steps) * 107);
        fprintf(file, "],\"typical\":[");
        for (int e = 0; e < run->experts; ++e) {
            fprintf(file, "%s[", e ? "," : "");
            for (int i = 0; i < 12; ++i) {
                unsigned token = (unsigned char)tokens[((size_t)(e * 5 + i * (l + 1))) % (sizeof tokens - 1)];
                fprintf(file, "%s{\"token\":%u,\"count\":%d,\"lift\":%.3f%s}", i ? "," : "", token,
                        31000 / (i * i + 1), 11.0 / (i + 1) + 0.3,
                        run->tokenizer && i == 0 ? ",\"text\":\" <b>\\n\"" : "");
            }
            fprintf(file, "]");
        }
        fprintf(file, "]}");
    }
    fprintf(file, "]}\n");
    fclose(file);
}

static inline void fake_texts(fake_run *run) {
    FILE *file = fake_open(run, "config.resolved.yaml");
    fprintf(
        file,
        "data:\n  eval: build/kjv/heldout.txt\n  train: build/kjv/train.txt\n"
        "model:\n  context: 256\n  d_model: 128\n  n_heads: 4\n  n_layers: %d\n  tie_embeddings: true\n"
        "  vocab_size: 256\n"
        "moe:\n  activation: swiglu\n  aux_loss_coeff: 0.01\n  expert_hidden_size: 128\n  num_experts: %d\n"
        "  top_k: 2\n  z_loss_coeff: 0.001\n"
        "train:\n  batch_size: 16\n  lr: 0.003\n  seed: 1\n  steps: %d\n  warmup_steps: 20\n"
        "  weight_decay: 0.1\n",
        run->layers, run->experts, run->steps);
    fclose(file);
    file = fake_open(run, "run.json");
    fprintf(
        file,
        "{\"schema\":1,\"version\":\"0.1.0\",\"command\":\"moekit train -c configs/kjv.yaml --run "
        "runs/demo\","
        "\"started\":\"2025-03-01T10:00:00Z\",\"seed\":1,\"host\":{\"cpu\":\"8-core <example> & friends\","
        "\"cores\":8,\"threads\":8,\"isa\":\"avx2\",\"memory_bytes\":16777216000},"
        "\"inputs\":[{\"key\":\"data.eval\",\"sha256\":"
        "\"60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752\"},"
        "{\"key\":\"data.train\",\"path\":\"build/kjv/train.txt\",\"bytes\":3964000,\"sha256\":"
        "\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"}%s],"
        "\"parameters\":{\"total\":1640448,\"active\":606208}}\n",
        run->tokenizer ? ",{\"key\":\"data.tokenizer\"}" : "");
    fclose(file);
    file = fake_open(run, "sample.txt");
    fprintf(
        file,
        "In the beginning was the word of the LORD, and he said unto them,\nBehold, I will bring the "
        "children "
        "of Israel out of the land of Egypt;\nand they shall know that I am <the LORD> & none else.\n\n"
        "And it came to pass in the days of the king, that he sent messengers\nunto the city\xff, saying, "
        "Go up, and dwell in the midst of the people.\n");
    fclose(file);
}

static inline void fake_run_write(fake_run run) {
    fake_metrics(&run);
    fake_load_bin(&run);
    fake_eval(&run);
    fake_texts(&run);
}

#endif
