// Who subscribes to what, found by subject: as a NATS server looks it up.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace millrace {

/// Patterns of Transport::subscribe(), each with values.
template <typename T>
class SubjectTree {
 public:
  void add(std::string_view pattern, T value) { place(root_, pattern).push_back(std::move(value)); }

  /// Calls with every value whose pattern the subject matches.
  template <typename Call>
  void match(std::string_view subject, Call&& call) const {
    visit(root_, subject, call);
  }

  /// Takes away the values for which this holds.
  template <typename Predicate>
  void remove_if(Predicate&& gone) {
    remove(root_, gone);
  }

 private:
  struct Branch {
    std::map<std::string, std::unique_ptr<Branch>, std::less<>> below;  // `*` among them
    std::vector<T> here;
    std::vector<T> all_below;  // of `>`
  };

  std::vector<T>& place(Branch& branch, std::string_view pattern) {
    if (pattern == ">") return branch.all_below;
    const std::size_t dot = pattern.find('.');
    std::unique_ptr<Branch>& next = branch.below[std::string(pattern.substr(0, dot))];
    if (!next) next = std::make_unique<Branch>();
    return dot == std::string_view::npos ? next->here : place(*next, pattern.substr(dot + 1));
  }

  template <typename Call>
  void visit(const Branch& branch, std::string_view subject, Call& call) const {
    for (const T& value : branch.all_below) call(value);
    const std::size_t dot = subject.find('.');
    for (const std::string_view part : {subject.substr(0, dot), std::string_view("*")}) {
      const auto next = branch.below.find(part);
      if (next == branch.below.end()) continue;
      if (dot != std::string_view::npos) {
        visit(*next->second, subject.substr(dot + 1), call);
      } else {
        for (const T& value : next->second->here) call(value);
      }
    }
  }

  template <typename Predicate>
  void remove(Branch& branch, Predicate& gone) {
    std::erase_if(branch.here, gone);
    std::erase_if(branch.all_below, gone);
    for (auto& [part, next] : branch.below) remove(*next, gone);
    std::erase_if(branch.below, [](const auto& entry) {
      return entry.second->here.empty() && entry.second->all_below.empty() && entry.second->below.empty();
    });
  }

  Branch root_;
};

}  // namespace millrace
