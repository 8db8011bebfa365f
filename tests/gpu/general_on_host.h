#pragma once

#include "kernels/cuda/general/args.h"

// The general path's device code as a host runs it, with lanes as loops: what needs no card.
namespace sketchkv::testing {

// As the launchers of kernels/cuda/general/args.h; all pointers are of the host.
void EncodeOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralEncodeArgs& args);
void DecodeOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralDecodeArgs& args);
void ScoreOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralScoreArgs& args);
void AttendOnHost(const cuda::GeneralPlan& plan, const cuda::GeneralAttendArgs& args);

}  // namespace sketchkv::testing
