// As much JSON as a manifest needs: objects, lists, texts, numbers; true, false and null count as numbers.
#pragma once
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
  std::map<std::string, Json> members;
  std::vector<Json> items;
  std::string text;
  double number = 0;

  const Json& operator[](const std::string& key) const {
    if (!members.count(key)) throw std::runtime_error("the manifest has no " + key);
    return members.at(key);
  }
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : at_(text.c_str()) {}

  Json read(int depth = 0) {
    Json made;
    if (depth > 100) throw std::runtime_error("the manifest is nested too deeply");
    switch (next()) {
      case '{':
        for (++at_; next() != '}';) {
          std::string key = string();
          expect(':');
          made.members[key] = read(depth + 1);
          if (next() == ',') ++at_;
        }
        ++at_;
        break;
      case '[':
        for (++at_; next() != ']';) {
          made.items.push_back(read(depth + 1));
          if (next() == ',') ++at_;
        }
        ++at_;
        break;
      case '"':
        made.text = string();
        break;
      default: {
        char* end;
        made.number = std::strtod(at_, &end);
        if (end == at_ && std::string("tfn").find(*at_) == std::string::npos) throw std::runtime_error("the manifest is no JSON");
        made.number = *at_ == 't' ? 1 : made.number;
        for (at_ = end; *at_ >= 'a' && *at_ <= 'z';) ++at_;
      }
    }
    return made;
  }

 private:
  char next() {
    while (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r') ++at_;
    return *at_;
  }
  void expect(char wanted) {
    if (next() != wanted) throw std::runtime_error("the manifest is no JSON");
    ++at_;
  }
  std::string string() {
    std::string made;
    for (expect('"'); *at_ && *at_ != '"'; ++at_) {
      if (*at_ == '\\' && at_[1]) ++at_;  // names of files and tensors have no other escapes
      made += *at_;
    }
    expect('"');
    return made;
  }

  const char* at_;
};
