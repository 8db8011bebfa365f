#pragma once

#include "tests/bench/contender.h"

namespace sketchkv::bench {

// popcount.score: 4 queries over the sign codes that the sketch scans, by bit planes of the query.
// Options bytes, planes (4 or 8). The rotation of the query is not counted. Checked against the
// codec's scores: INTERNAL when they are further off than planes of the query explain.
void AddPopcountContender(Registry* registry);

}  // namespace sketchkv::bench
