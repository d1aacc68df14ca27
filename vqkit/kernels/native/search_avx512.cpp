#define VQKIT_VARIANT avx512_variant
#define VQKIT_NAME "avx512"
#define VQKIT_LANES 16
#define VQKIT_ROWS 12
#include "float_tiles.inl"
#include "search.inl"
