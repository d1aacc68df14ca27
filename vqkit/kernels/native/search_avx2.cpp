#define VQKIT_VARIANT avx2_variant
#define VQKIT_NAME "avx2"
#define VQKIT_LANES 8
#define VQKIT_ROWS 6
#include "float_tiles.inl"
#include "search.inl"
