// How a source file offers operations to XLA: write a function over `ffi` buffers, then
//
//   ZIGGURAT_HANDLER(name, function, ffi::Ffi::Bind().Arg<...>()...);
//
// at namespace scope. Python finds every handler in the library's table by itself and registers it
// as `ziggurat_<name>`; see `library.cc` and `ziggurat/kernels/cpu/library.py`.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace ziggurat {

namespace ffi = xla::ffi;

// Adds a handler to the library's table; returns its place in it.
int add_handler(const char* name, XLA_FFI_Handler* handler);

}  // namespace ziggurat

#define ZIGGURAT_HANDLER(name, function, ...)                            \
  static XLA_FFI_Error* name##_handler(XLA_FFI_CallFrame* frame) {       \
    XLA_FFI_DEFINE_HANDLER(handler, function, __VA_ARGS__);              \
    return (*handler)(frame);                                            \
  }                                                                      \
  [[maybe_unused]] static const int name##_place = ::ziggurat::add_handler(#name, name##_handler)
