#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// The product end to end: this process's SDK and a sketchkvd (option server; others as SdkSession).
//   sdk.put       `items` new raw blocks in one PutAll; a unit is a raw byte
//   sdk.get       `items` blocks in one GetAll; option format: encoded or bf16; a unit is a raw
//                 byte
//   sdk.attend    one Attend over `tokens` tokens of each of `sequences` in one layer, 32 query
//                 heads, by lease; a unit is a call; Pauses apply
//   sdk.blocks    measures nothing: bytes_per_unit is what one block takes encoded
void AddSdkContenders(Registry* registry);

}  // namespace sketchkv::bench
