#include "sketchkv/types.h"

namespace sketchkv {
inline namespace sdk {

size_t ElementBytes(ElementType type) {
  switch (type) {
    case ElementType::kFp32:
      return 4;
    case ElementType::kBf16:
    case ElementType::kFp16:
      return 2;
    case ElementType::kFp8E4M3:
    case ElementType::kFp8E5M2:
      return 1;
  }
  return 0;
}

}  // namespace sdk
}  // namespace sketchkv
