#define VQKIT_VARIANT portable_variant
#define VQKIT_NAME "portable"
#define VQKIT_LANES 4
#define VQKIT_ROWS 6
#include "float_tiles.inl"
#include "search.inl"
