// make_golden FOLDER: writes the golden cells. Run it only for a deliberate change of the format.
#include <fstream>
#include <iostream>

#include "tests/kernels/golden_cells.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: " << argv[0] << " FOLDER\n";
    return 2;
  }
  for (const auto& golden : sketchkv::testing::GoldenCells()) {
    const auto cell = sketchkv::testing::EncodeGolden(golden, sketchkv::Isa::kScalar);
    std::ofstream out(std::string(argv[1]) + "/" + golden.file, std::ios::binary);
    out.write(reinterpret_cast<const char*>(cell.data()),
              static_cast<std::streamsize>(cell.size()));
    if (!out.flush()) {
      std::cerr << "cannot write " << golden.file << "\n";
      return 1;
    }
    const auto answers = sketchkv::testing::AnswersOf(golden, cell, sketchkv::Isa::kScalar);
    std::ofstream(std::string(argv[1]) + "/" + golden.file + ".answers", std::ios::binary)
        .write(reinterpret_cast<const char*>(answers.data()),
               static_cast<std::streamsize>(answers.size() * sizeof(float)));
    const auto tables = sketchkv::testing::TablesOf(golden);
    if (!tables.empty()) {
      std::ofstream(std::string(argv[1]) + "/" + golden.file + ".tables", std::ios::binary)
          .write(reinterpret_cast<const char*>(tables.data()),
                 static_cast<std::streamsize>(tables.size()));
    }
    std::cout << golden.file << ": " << cell.size() << " bytes\n";
  }
  return 0;
}
