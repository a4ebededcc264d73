// What an integer mma.sync leaves of a scheduler's issue slots to other instructions, on Hopper.
//
//     nvcc -O3 -gencode arch=compute_90a,code=sm_90a docs/issue_slots.cu -o /tmp/issue_slots && /tmp/issue_slots
//
// Prints clocks of a scheduler for one MMA and N other instructions, with 1, 2 and 4 warps on it. Were the
// tensor core and the others independent, they would be max(6, N): they are about 6 + N.

#include <cstdint>
#include <cstdio>

constexpr int kSteps = 200, kMmas = 12;

__device__ void multiply(uint32_t (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

template <bool kLogic, int N>
__global__ void loop(uint32_t* out, long long* clocks) {
  uint32_t sums[6][4] = {}, left[4], right[6][2], words[16];
  float numbers[16];
  for (int i = 0; i < 4; i++) left[i] = threadIdx.x * 7 + i;
  for (int j = 0; j < 6; j++) right[j][0] = threadIdx.x + j, right[j][1] = threadIdx.x * 3 + j;
  for (int i = 0; i < 16; i++) words[i] = threadIdx.x + i, numbers[i] = words[i];
  const uint32_t mask = out[0], bits = threadIdx.x * 77;
  __syncthreads();
  const long long start = clock64();
#pragma unroll 1
  for (int step = 0; step < kSteps; step++) {
#pragma unroll
    for (int j = 0; j < kMmas; j++) {
      multiply(sums[j % 6], left, right[j % 6]);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const int k = (j * N + i) % (kLogic ? 16 : 14);
        if (kLogic)
          asm volatile("lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(words[k]) : "r"(mask), "r"(bits));
        else
          asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(numbers[k]) : "f"(numbers[14]), "f"(numbers[15]));
      }
    }
  }
  const long long stop = clock64();
  uint32_t total = 0;  // so that nothing is left out
  for (auto& row : sums) for (uint32_t x : row) total += x;
  for (int i = 0; i < 16; i++) total += words[i] + __float_as_uint(numbers[i]);
  out[1 + blockIdx.x * blockDim.x + threadIdx.x] = total;
  if (threadIdx.x == 0) clocks[blockIdx.x] = stop - start;
}

template <bool kLogic, int N>
void measure(uint32_t* out, long long* clocks) {
  printf("1 MMA + %d %s:", N, kLogic ? "LOP3" : "FFMA");
  for (int warps = 1; warps <= 4; warps *= 2) {  // of each of the four schedulers
    for (int run = 0; run < 2; run++) loop<kLogic, N><<<132, 128 * warps>>>(out, clocks);
    long long taken;
    cudaMemcpy(&taken, clocks, sizeof taken, cudaMemcpyDeviceToHost);
    printf("  %.2f", double(taken) / (kSteps * kMmas * warps));
  }
  printf("\n");
}

int main() {
  uint32_t* out;
  long long* clocks;
  cudaMalloc(&out, 1 << 22), cudaMalloc(&clocks, 4096), cudaMemset(out, 0, 1 << 22);
  measure<true, 0>(out, clocks), measure<true, 1>(out, clocks), measure<true, 2>(out, clocks);
  measure<true, 3>(out, clocks), measure<true, 4>(out, clocks);
  measure<false, 2>(out, clocks), measure<false, 4>(out, clocks);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) printf("%s\n", cudaGetErrorString(error));
  return error != cudaSuccess;
}
