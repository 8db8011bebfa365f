#include "client/cpp/demo/interrupt.h"

#include <signal.h>

#include <initializer_list>

namespace sketchkv::demo {
namespace {

// A signal handler can reach nothing else.
volatile sig_atomic_t interrupted = 0;

void OnSignal(int) { interrupted = 1; }

}  // namespace

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaction(number, &action, nullptr);
}

bool Interrupted() { return interrupted != 0; }

}  // namespace sketchkv::demo
