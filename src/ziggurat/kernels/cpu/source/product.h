// Product of two float32 matrices, over all threads.
#pragma once

#include <cstdint>

namespace ziggurat {

// Element (i, j) is data[i * row + j], or data[j * row + i] if `transposed`.
struct Matrix {
  const float* data;
  int64_t row;
  bool transposed;
};

// C[m, n] = A[m, k] B[k, n], or C += A B if `add`; rows of C are c_row apart. Every element is
// summed in the same order whatever the number of threads.
void multiply(int64_t m, int64_t n, int64_t k, Matrix a, Matrix b, float* c, int64_t c_row,
              bool add);

}  // namespace ziggurat
