// Answers by a deadline in C++: ./deadline FOLDER MILLISECONDS [IMAGE.f32]
//
// FOLDER is what `anytime export --engine onnx` wrote. The image is float32, C x H x W in [0, 1]; without one it is grey. A step
// starts whenever time is left. When the deadline comes, the step in progress is cancelled, and the newest answer goes out.
// The checksums of the manifest are not compared here: load folders that you made.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>

#include "json.hpp"

using Clock = std::chrono::steady_clock;

static std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Step {
  std::vector<std::string> inputs, outputs, sources;  // names in the graph, and which value of an earlier step each input is
  Ort::Session session;
};

static std::vector<const char*> pointers(const std::vector<std::string>& names) {
  std::vector<const char*> made;
  for (const auto& name : names) made.push_back(name.c_str());
  return made;
}

static std::vector<Step> load(const std::string& folder, const Json& manifest, const Ort::Env& env) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  options.AddConfigEntry("session.set_denormal_as_zero", "1");
  std::vector<Step> steps;
  for (const Json& entry : manifest["steps"].items) {
    const std::string& file = entry["file"].text;
    if (file.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_.") != std::string::npos || file.find("step_") != 0)
      throw std::runtime_error("the manifest names a file that no export has: " + file);
    const std::string data = read_file(folder + "/" + file);
    Step step{{}, {}, {}, Ort::Session(env, data.data(), data.size(), options)};
    for (const Json& input : entry["inputs"].items) {
      const Json& from = input["from"];
      step.inputs.push_back(input["name"].text);
      step.sources.push_back(from.text.empty() ? std::to_string(int(from["step"].number)) + from["output"].text : from.text);
    }
    for (const Json& output : entry["outputs"].items) step.outputs.push_back(output["name"].text);
    steps.push_back(std::move(step));
  }
  return steps;
}

int main(int count, char** arguments) try {
  char* rest = nullptr;
  const double deadline = count < 3 ? 0 : std::strtod(arguments[2], &rest);
  if (count < 3 || rest == arguments[2] || *rest || !(std::abs(deadline) < 1e9))
    throw std::runtime_error("usage: deadline FOLDER MILLISECONDS [IMAGE.f32]");
  const Json manifest = JsonReader(read_file(std::string(arguments[1]) + "/manifest.json")).read();
  if (manifest["format"].number != 1 || manifest["engine"].text != "onnx") throw std::runtime_error("not an ONNX export of format 1");
  const auto classes = size_t(manifest["levels"].items.at(0).number);
  Ort::Env env(ORT_LOGGING_LEVEL_FATAL);
  std::vector<Step> steps = load(arguments[1], manifest, env);
  const Json& size = manifest["input"];
  const std::vector<int64_t> shape{1, int64_t(size["channels"].number), int64_t(size["height"].number), int64_t(size["width"].number)};
  std::vector<float> image(shape[1] * shape[2] * shape[3], 0.5f);
  if (count > 3) {
    const std::string pixels = read_file(arguments[3]);
    if (pixels.size() != image.size() * sizeof(float)) throw std::runtime_error("the image has another size than the network's");
    std::copy_n(pixels.data(), pixels.size(), reinterpret_cast<char*>(image.data()));
  }

  const auto start = Clock::now(), end = start + std::chrono::microseconds(int64_t(1000 * deadline));
  std::mutex lock;
  std::condition_variable over;
  Ort::RunOptions run;
  std::vector<float> answer;  // the newest finite logits, of the first label level
  size_t answered = 0;
  std::string problem;
  bool done = false;
  std::thread worker([&] {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::map<std::string, Ort::Value> values;
    values.emplace("images", Ort::Value::CreateTensor<float>(memory, image.data(), image.size(), shape.data(), shape.size()));
    try {
      for (size_t t = 0; t < steps.size() && Clock::now() < end; ++t) {
        Step& step = steps[t];
        std::vector<const OrtValue*> given;
        std::vector<OrtValue*> made(step.outputs.size());
        for (const auto& source : step.sources) given.push_back(values.at(source));
        Ort::ThrowOnError(Ort::GetApi().Run(step.session, run, pointers(step.inputs).data(), given.data(), given.size(),
                                            pointers(step.outputs).data(), made.size(), made.data()));
        for (size_t i = 0; i < made.size(); ++i) values.emplace(std::to_string(t + 1) + step.outputs[i], Ort::Value(made[i]));
        const Ort::Value& first = values.at(std::to_string(t + 1) + "answer");
        if (first.GetTensorTypeAndShapeInfo().GetElementCount() < classes) throw std::runtime_error("an answer is too short");
        const float* logits = first.GetTensorData<float>();
        const std::lock_guard<std::mutex> held(lock);
        if (Clock::now() > end) break;  // a late answer does not count
        if (!std::all_of(logits, logits + classes, [](float logit) { return std::isfinite(logit); })) continue;
        answer.assign(logits, logits + classes);
        answered = t + 1;
      }
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> held(lock);
      if (Clock::now() < end) problem = error.what();  // or else it was cancelled
    }
    const std::lock_guard<std::mutex> held(lock);
    done = true;
    over.notify_one();
  });
  std::unique_lock<std::mutex> held(lock);
  over.wait_until(held, end, [&] { return done; });
  const double milliseconds = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  run.SetTerminate();
  if (!problem.empty()) {
    std::fprintf(stderr, "%s\n", problem.c_str());
  } else if (answered) {
    const auto best = std::max_element(answer.begin(), answer.end());
    double total = 0;
    for (float logit : answer) total += std::exp(logit - *best);
    std::printf("step %zu of %zu, class %td (%.1f %%), %.2f ms\n", answered, steps.size(), best - answer.begin(), 100 / total, milliseconds);
  } else {
    std::printf("no step in %.2f ms\n", milliseconds);
  }
  held.unlock();
  worker.join();
  return problem.empty() ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
