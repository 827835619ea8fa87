// What Python asks the library itself: what it was built from and which handlers it has.
#include <utility>
#include <vector>

#include "handlers.h"
#include "threads.h"

namespace ziggurat {
namespace {

// Filled by static initialisers of all files, in any order, so made when first used.
std::vector<std::pair<const char*, XLA_FFI_Handler*>>& table() {
  static auto* made = new std::vector<std::pair<const char*, XLA_FFI_Handler*>>;
  return *made;
}

}  // namespace

int add_handler(const char* name, XLA_FFI_Handler* handler) {
  table().emplace_back(name, handler);
  return static_cast<int>(table().size()) - 1;
}

}  // namespace ziggurat

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Digest of all sources and flags, as `build.py` computes it.
EXPORTED const char* ziggurat_digest() { return ZIGGURAT_DIGEST; }

// Minor version of XLA's foreign function interface in the headers that this was compiled with.
EXPORTED int64_t ziggurat_interface_minor() { return XLA_FFI_API_MINOR; }

EXPORTED int64_t ziggurat_threads() { return ziggurat::thread_count(); }

EXPORTED int64_t ziggurat_handler_count() {
  return static_cast<int64_t>(ziggurat::table().size());
}

EXPORTED const char* ziggurat_handler_name(int64_t place) {
  return ziggurat::table()[place].first;
}

EXPORTED void* ziggurat_handler_address(int64_t place) {
  return reinterpret_cast<void*>(ziggurat::table()[place].second);
}
