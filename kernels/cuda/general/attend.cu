#include "kernels/cuda/general/work.cuh"

namespace sketchkv::cuda {
namespace {

struct PrepareSixteens {
  static __device__ void Run(const GeneralPlan& plan, const GeneralQueryArgs& args, uint32_t i) {
    PrepareQueries(plan, args, i);
  }
};
struct ScoreItems {
  static __device__ void Run(const GeneralPlan& plan, const GeneralScoreArgs& args, uint32_t i) {
    ScoreItem(plan, args, i);
  }
};
struct AttendItems {
  static __device__ void Run(const GeneralPlan& plan, const GeneralAttendArgs& args, uint32_t i) {
    AttendItem(plan, args, i);
  }
};
struct MergeItems {
  static __device__ void Run(const GeneralPlan& plan, const GeneralAttendArgs& args, uint32_t i) {
    MergeItem(plan, args, i);
  }
};
struct TurnItems {
  static __device__ void Run(const GeneralPlan& plan, const GeneralAttendArgs& args, uint32_t i) {
    TurnItem(plan, args, i);
  }
};

uint64_t Pairs(const GeneralQueryArgs& args) {
  return uint64_t{args.chain.num_sequences} * args.chain.num_kv_heads;
}
uint64_t Groups(const GeneralQueryArgs& args, uint32_t size) {
  return (uint64_t{args.num_queries} + size - 1) / size;
}

cudaError_t Prepare(const GeneralPlan& plan, const GeneralQueryArgs& args, cudaStream_t stream) {
  return LaunchWork<PrepareSixteens>(plan, args, plan.worker_bytes,
                                     Pairs(args) * Groups(args, kLanes), stream);
}

}  // namespace

cudaError_t LaunchGeneralScore(const GeneralPlan& plan, const GeneralScoreArgs& args,
                               cudaStream_t stream) {
  const GeneralQueryArgs& query = args.query;
  const cudaError_t error = Prepare(plan, query, stream);
  if (error != cudaSuccess) return error;
  return LaunchWork<ScoreItems>(plan, args, plan.attend_bytes,
                                query.chain.num_thread_blocks * Groups(query, kQueriesTogether),
                                stream);
}

cudaError_t LaunchGeneralAttend(const GeneralPlan& plan, const GeneralAttendArgs& args,
                                cudaStream_t stream) {
  const GeneralQueryArgs& query = args.query;
  cudaError_t error = Prepare(plan, query, stream);
  if (error == cudaSuccess) {
    error = LaunchWork<AttendItems>(plan, args, plan.attend_bytes,
                                    query.chain.num_thread_blocks * Groups(query, kQueriesTogether),
                                    stream);
  }
  if (error == cudaSuccess) {
    const uint64_t sixteens = (uint64_t{plan.value_rows} + kLanes - 1) / kLanes;
    error = LaunchWork<MergeItems>(plan, args, plan.attend_bytes,
                                   Pairs(query) * query.num_queries * sixteens, stream);
  }
  if (error != cudaSuccess || plan.values != GeneralValues::kRotated) return error;
  return LaunchWork<TurnItems>(plan, args, plan.worker_bytes, Pairs(query) * Groups(query, kLanes),
                               stream);
}

}  // namespace sketchkv::cuda
