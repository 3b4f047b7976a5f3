"""A real llama.cpp server on random weights: an inference server without a model to download.

Writes the model, serves it on a port of its own choice, prints `PORT` and ends with its stdin.
Usage: server.py DIRECTORY SLOTS
"""

import os
import sys

import gguf
import numpy
import xllamacpp

WIDTH, LAYERS, HEADS, INNER, CONTEXT = 256, 4, 4, 512, 512


def write_model(path):
    """The smallest thing of llama's architecture that the server takes; a token is a byte."""
    chance = numpy.random.default_rng(7)
    model = gguf.GGUFWriter(path, "llama")
    model.add_context_length(CONTEXT)
    model.add_embedding_length(WIDTH)
    model.add_block_count(LAYERS)
    model.add_feed_forward_length(INNER)
    model.add_head_count(HEADS)
    model.add_head_count_kv(HEADS)
    model.add_layer_norm_rms_eps(1e-5)
    model.add_rope_dimension_count(WIDTH // HEADS)
    special = [b"<unk>", b"<s>", b"</s>"]
    tokens = special + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    model.add_tokenizer_model("llama")
    model.add_token_list(tokens)
    model.add_token_scores([0.0] * len(tokens))
    model.add_token_types(kinds)
    model.add_bos_token_id(1)
    model.add_eos_token_id(2)
    model.add_unk_token_id(0)

    def tensor(name, *shape):
        model.add_tensor(name, (chance.standard_normal(shape) * 0.05).astype(numpy.float32))

    def norm(name):
        model.add_tensor(name, numpy.ones(WIDTH, dtype=numpy.float32))

    tensor("token_embd.weight", len(tokens), WIDTH)
    tensor("output.weight", len(tokens), WIDTH)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        tensor(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        tensor(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        tensor(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
    model.write_header_to_file()
    model.write_kv_data_to_file()
    model.write_tensors_to_file()
    model.close()


def main():
    directory, slots = sys.argv[1], int(sys.argv[2])
    path = os.path.join(directory, "random.gguf")
    write_model(path)
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = ["127.0.0.1"]
    params.port = int(os.environ.get("PORT", "0"))
    params.n_parallel = slots
    params.n_ctx = CONTEXT * slots
    params.endpoint_metrics = True
    # A connection holds a thread: with few of them requests wait where no metric counts them.
    params.n_threads_http = 512
    # One core for the server, one for everything else.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    # Every prompt costs what it is long.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"PORT {server.listening_address.rsplit(':', 1)[-1].strip('/')}", flush=True)
    sys.stdin.read()


main()
