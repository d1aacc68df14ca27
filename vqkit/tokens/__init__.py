"""What a model is trained on after a tokenizer: shards of indices, and semantic IDs (`semantic_ids`).

Token shards are the indices of a data set on the disk, written by a tokenizer and read by the model trained on them.

A directory holds shards, `tokens-<rank>-of-<ranks>-<number>.safetensors`, and for every rank a manifest,
`manifest-<rank>-of-<ranks>.json`. A shard has the tensor `indices` (samples, *shape), unsigned and as small as the
codebook allows; if any index was -1, also `masked` (samples, *shape), bool, where `indices` is 0; and the samples'
names in its metadata. Sequences that differ in length, such as utterances, are one after another on the first axis,
`indices` (sum of lengths, ...), with `lengths` (samples,) int64. Where samples have classes, their numbers are in the
metadata of the shard, and the names of the classes in the manifest. Pictures in their own sizes have `extents`
(samples, 2) int64, height and width in pixels, and where grids differ, these are one after another, row by row,
`indices` (sum of height * width, ...), with `lengths` (samples, 2) int64. Every file appears whole or not at all, and a
manifest lists a shard only after it is on the disk.
"""
