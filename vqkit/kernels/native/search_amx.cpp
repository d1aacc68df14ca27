#define VQKIT_VARIANT amx_variant
#define VQKIT_NAME "amx"
#include "amx_tiles.inl"
#include "search.inl"
