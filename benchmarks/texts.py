"""What the document says beside its figures."""

from benchmarks import machine, others, rows
from benchmarks.models import DTYPES
from benchmarks.scaling import TOO_LONG

SAME_PRODUCTS = "The latents' layers are most of the work: the same products on both sides."

LIMITS: dict[str, str] = {
    **dict.fromkeys(
        [f"every row, {dtype}" for dtype in DTYPES],
        f"{SAME_PRODUCTS} No more can be left out than what is outside them.",
    ),
    f"{rows.LANGUAGE_STEP}, memory": "Most of it is weights and their gradients, which both sides have; \
`checkpointing=True` keeps no activations, but computes them twice.",
    "fraction of the peak, float32": "Softmax, normalization and GELU take time and count nothing.",
    "fraction of the peak, bfloat16": "As in float32, where products take longer. In the latents of flow, 16 heads of \
32 channels, the softmax takes longer than either product.",
    "scaling exponent in outputs: memory": "It grows more slowly than linearly: chunks of the decoder are bounded.",
    "scaling exponent in inputs: time": "Short inputs stay in the processor's cache, long ones do not.",
}
"""For a target that is not reached, by its key: what the limit is. It stands behind the figures."""

METHOD = f"""
- Every row runs both sides in turn, call by call, each in a process of its own; a ratio is the median of the ratios
  pair by pair, in brackets the lowest and highest. Before, each side runs the work once, uncounted, or a small part
  of it: a crop, one example, or one part. Times are medians.
- Weights are random, of the published sizes, the same on both sides; models are converted by `model.to(dtype)`. The
  difference of both answers is the largest, in standard deviations of the answer; of a training step it is that of
  the gradient of the latents. A run fails if it is above 0.001 in float32.
- A training step is forward, loss and backward in training mode, without the optimizer's update, which is the same on
  both sides, and without dropout. Losses: cross-entropy of the 15% of tokens that are masked (of which ours decodes
  no others), cross-entropy of images, mean end-point error of flow.
- Memory is the peak of the process during the row, with its weights, inputs and torch itself, by the kernel's
  high-water mark, started anew before each row; on a GPU what torch allocated. Where there is no `/proc`, it is the
  peak since the process began.
- FLOPs are those of the matrix products and convolutions that a side executes, a multiply and an add being two,
  counted by torch's `FlopCounterMode` while the same code runs on the meta device; a backward pass counts too. The
  fraction of the peak is FLOPs by time by the best of some {machine.SIDE} x {machine.SIDE} x {machine.SIDE} products
  in the same precision, measured at the beginning and the end of the run. All else that a side does takes time, but
  counts nothing.
- `transformers` reads texts of 2,048 bytes only, so shorter ones are padded and masked for it; ours reads them as
  they are. It cuts a clip's outputs into 128 parts and encodes the clip anew for each: three are measured, after one
  that is not counted, and taken for all. In bfloat16 it stops at its masks of float32, so its input array is
  converted for it. It is given images normalized, and frames cut into patches, which ours does within what is timed.
- Compiled is `model.compile()`, with the time of the first call, which compiles, beside it.
- `perceiver-pytorch` cannot have the same weights. The same are: {others.SAME}. Different: {others.DIFFERENT}. The
  ratio per FLOP is that of the FLOPs a second.
- Scaling: forward passes in float32 of a model with {others.LATENTS} latents of {others.WIDTH} channels and
  {others.DEPTH} layers; inputs of {others.CHANNELS} channels, outputs of {others.ANSWERED}, {others.FEW:,} inputs
  while the outputs grow. Fitted is fixed + factor x count^exponent by least squares of the relative residuals. The
  Transformer encoder is torch's, of the same width, depth, heads and width of MLPs, without the "fast path", which is
  slower for long inputs; it ends where a call would take more than {TOO_LONG:.0f} s, going on from the last two
  points, or where memory ends.
"""

REASONS = """
- **Encode once.** Outputs are decoded in chunks from latents that are computed once, and so are the decoder's keys
  and values.
- **Nothing is projected that need not be.** With one head, the weights of keys and values, or of queries and output,
  are applied on the side of the few latents (`kernels/folding.py`), also in training.
- **The last layers are one.** Where an output has few channels, the linear layers before it are multiplied with each
  other first (`kernels/folding.py`).
- **Only what is asked for.** Texts are not padded; of padding in a batch nothing is scored or decoded, and nothing is
  projected, except by small layers, which are faster on all; masked language modeling decodes the masked tokens
  only. A mask that hides nothing is dropped.
- **One array is one array.** Where keys and values are the same, mixed precision converts it once, and its gradient is
  summed within the attention. Gradients of a single head are products that read the transposed scores where they are.
- **Channels last.** The convolutional stem computes in this layout.
- **Few scores are stored.** Attention is torch's fused kernel, or the formula in chunks whose scores stay in the cache,
  computed again for gradients, or, where the weights of a layer take at most 4 MB, the formula with its weights kept
  for the gradients (`kernels/attention.py`, `kernels/chunked.py`). Many inputs are taken in blocks, whose results are
  combined by the sums of their weights (`kernels/blocked.py`).
- **Less memory is mapped anew.** The softmax and its gradient are computed in place, and the process keeps up to 128 MB
  of freed memory (`model/memory.py`): by default, glibc may return what a layer frees, and the page faults of the next
  layer can take as long as its products. Whether it does depends on what lies at the end of the heap, so that equal
  calls took 2.4 or 2.9 s. In this benchmark, `transformers` has the same setting.
- **What is faster on this machine.** Which of these it is, of how many bytes chunks are, whether they have one head or
  several, whether channels are padded, whether a batch with padding is computed at once or example by example, and
  whether a product is oneDNN's or MKL's, is measured on the first use and kept (`kernels/tuning.py`).
- **Positions along each axis.** A sine is computed once for every row, column and frame instead of every point.
"""

TRIED = """
- GELU and residual sums fused into oneDNN's products: within the noise of the machine.
- Weights packed beforehand in oneDNN's own layout: a few percent, for twice the memory of weights and a layout that
  torch does not promise.
- Chunks of the decoder of 8 to 256 MB: 64 and 128 MB, the default, are the fastest, by some percent.
- In bfloat16, exponentials without the maximum, divided by their sums after the product with the values: as fast as
  softmax, except where inputs are taken in blocks (by 8% there, 2% of flow). A buffer of scores for all calls: as fast,
  once freed memory is kept.
- `torch.compile`: see the table. On processors there is little left to fuse beside the matrix products.
"""

PROFILE = """\
One more call of ours by torch's profiler. The products are those that both sides compute; what is left to gain on
`transformers` is in the other columns. "Other" is the arrangement of memory, pooling, and Python."""

NO_BFLOAT16 = """\
Without AVX-512, torch multiplies bfloat16 in a plain loop, and so does `transformers`; here, products are computed in
float32. Of the rows in bfloat16, only the smallest is measured: the others would take minutes to hours each. The
peak in bfloat16 is that of torch's loop, and its fraction can be above 1."""

NO_GPU = """
Not measured: there was no GPU. The same rows run there, in bfloat16, with batches that fill the card:

```
python benchmarks/run.py --device cuda
python benchmarks/report.py
```

The fused kernels of GPUs take heads of up to 256 channels, in eights. The single heads of these models have 261 to 704,
for which `scaled_dot_product_attention` falls back to forming all scores; there, ours computes the formula in pieces of
256 MB of scores, by plain matrix products (`kernels/attention.py`). This path is tested on CPU against the formula.
"""
