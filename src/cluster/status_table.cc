#include "cluster/status_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

namespace millrace {

namespace {

using nlohmann::ordered_json;

constexpr std::size_t kShortClass = 40;  // letters of a numeric class

struct NodeRow {
  const std::string& name;
  const NodeState& state;
  std::optional<double> tokens_per_second;
  Duration now;
  NodePrice price;
};
struct GatewayRow {
  const std::string& name;
  const ClusterView::Gateway& gateway;
  Duration now;
};

/// Its key in JSON, its title, and what stands there.
template <typename Row>
struct Column {
  const char* key;
  const char* title;
  ordered_json (*cell)(const Row&);
  int digits = 1;  // of a number in the table, after its point
};

ordered_json or_null(const std::optional<double>& value) {
  return value ? ordered_json(*value) : ordered_json(nullptr);
}

ordered_json or_null(const std::string& text) {
  return text.empty() ? ordered_json(nullptr) : ordered_json(text);
}

double age(Duration heard, Duration now) {
  return std::chrono::duration<double>(now - heard).count();
}

/// Of all its models, with commas between them.
ordered_json of_models(const NodeState& state, std::string NodeModel::*what) {
  std::string text;
  for (const NodeModel& model : state.record.models) text += (text.empty() ? "" : ",") + model.*what;
  return or_null(text);
}

/// What only beats tell.
template <typename Value>
ordered_json if_heard(const NodeRow& row, const Value& value) {
  return row.state.beat.number == 0 ? ordered_json(nullptr) : ordered_json(value);
}

const Column<NodeRow> kNodeColumns[] = {
    {"node", "NODE", [](const NodeRow& r) -> ordered_json { return r.name; }},
    {"state", "STATE", [](const NodeRow& r) -> ordered_json { return node_health_name(r.state.health); }},
    {"model", "MODEL", [](const NodeRow& r) { return of_models(r.state, &NodeModel::name); }},
    {"places", "PLACES", [](const NodeRow& r) -> ordered_json { return r.state.record.places; }},
    {"running", "RUNNING", [](const NodeRow& r) { return if_heard(r, r.state.beat.running); }},
    {"waiting", "WAITING", [](const NodeRow& r) { return if_heard(r, r.state.beat.waiting); }},
    {"kv_free", "KV FREE", [](const NodeRow& r) { return if_heard(r, r.state.beat.kv_free); }},
    {"kv_tokens", "OF", [](const NodeRow& r) { return if_heard(r, r.state.beat.kv_tokens); }},
    {"tokens_per_second", "TOKENS/S", [](const NodeRow& r) { return or_null(r.tokens_per_second); }},
    {"beat_age_s", "AGE S", [](const NodeRow& r) { return if_heard(r, age(r.state.heard, r.now)); }},
    {"usd_per_hour", "$/H", [](const NodeRow& r) -> ordered_json { return r.price.usd_per_hour; }, 2},
    {"usd_per_kwh", "$/KWH", [](const NodeRow& r) -> ordered_json { return r.price.usd_per_kwh; }, 3},
    {"region", "REGION", [](const NodeRow& r) { return or_null(r.state.terms.region); }},
    {"data_class", "DATA CLASS",
     [](const NodeRow& r) -> ordered_json { return r.state.terms.trusted ? "trusted" : "open"; }},
    {"quarantine", "QUARANTINE", [](const NodeRow& r) { return or_null(r.state.quarantine); }},
    {"numeric_class", "NUMERIC CLASS", [](const NodeRow& r) { return of_models(r.state, &NodeModel::numeric_class); }},
};

const Column<GatewayRow> kGatewayColumns[] = {
    {"gateway", "GATEWAY", [](const GatewayRow& r) -> ordered_json { return r.name; }},
    {"state", "STATE", [](const GatewayRow& r) -> ordered_json { return node_health_name(r.gateway.health); }},
    {"running", "RUNNING", [](const GatewayRow& r) -> ordered_json { return r.gateway.beat.running; }},
    {"waiting", "WAITING", [](const GatewayRow& r) -> ordered_json { return r.gateway.beat.waiting; }},
    {"tokens_per_second", "TOKENS/S", [](const GatewayRow& r) { return or_null(r.gateway.tokens.per_second()); }},
    {"connections", "CONNECTIONS", [](const GatewayRow& r) -> ordered_json { return r.gateway.beat.connections; }},
    {"ready_nodes", "READY NODES", [](const GatewayRow& r) -> ordered_json { return r.gateway.beat.ready_nodes; }},
    {"beat_age_s", "AGE S", [](const GatewayRow& r) -> ordered_json { return age(r.gateway.heard, r.now); }},
};

template <typename Call>
void for_each_node(const ClusterView& view, Duration now, UnixSeconds wall, Call&& call) {
  for (const auto& [name, state] : view.nodes().nodes()) {
    call(NodeRow{name, state, view.tokens_per_second(name), now, state.terms.price(wall)});
  }
}

template <typename Call>
void for_each_gateway(const ClusterView& view, Duration now, Call&& call) {
  for (const auto& [name, gateway] : view.gateways()) call(GatewayRow{name, gateway, now});
}

template <typename Row>
ordered_json row_json(std::span<const Column<Row>> columns, const Row& row) {
  ordered_json json = ordered_json::object();
  for (const Column<Row>& column : columns) json[column.key] = column.cell(row);
  return json;
}

/// What others say of themselves may have anything in it, escape sequences of the terminal too.
std::string plain(const std::string& text) {
  std::string shown;
  for (const char c : text) shown += c >= ' ' && c <= '~' ? c : '?';
  return shown.size() <= kShortClass ? shown : shown.substr(0, kShortClass - 3) + "...";
}

std::string cell_text(const ordered_json& cell, int digits) {
  if (cell.is_null()) return "-";
  if (cell.is_string()) return plain(cell.get<std::string>());
  return cell.is_number_float() ? fmt::format("{:.{}f}", cell.get<double>(), digits) : cell.dump();
}

/// Numbers to the right, texts to the left.
class Table {
 public:
  template <typename Row>
  explicit Table(std::span<const Column<Row>> columns) : widths_(columns.size()), right_(columns.size(), true) {
    std::vector<std::string> titles;
    for (const Column<Row>& column : columns) titles.emplace_back(column.title);
    add(std::move(titles));
  }

  template <typename Row>
  void add_row(std::span<const Column<Row>> columns, const Row& row) {
    std::vector<std::string> cells;
    for (std::size_t c = 0; c < columns.size(); ++c) {
      const ordered_json cell = columns[c].cell(row);
      if (cell.is_string()) right_[c] = false;
      cells.push_back(cell_text(cell, columns[c].digits));
    }
    add(std::move(cells));
  }

  [[nodiscard]] std::string text(std::size_t width) const {
    std::string all;
    for (const std::vector<std::string>& cells : rows_) {
      std::string line;
      for (std::size_t c = 0; c < cells.size(); ++c) {
        if (c > 0) line += "  ";
        line += right_[c] ? fmt::format("{:>{}}", cells[c], widths_[c]) : fmt::format("{:<{}}", cells[c], widths_[c]);
      }
      if (width > 0 && line.size() > width) line.resize(width);
      line.erase(line.find_last_not_of(' ') + 1);
      all += line + "\n";
    }
    return all;
  }

  [[nodiscard]] std::size_t rows() const { return rows_.size() - 1; }

 private:
  void add(std::vector<std::string> cells) {
    for (std::size_t c = 0; c < cells.size(); ++c) widths_[c] = std::max(widths_[c], cells[c].size());
    rows_.push_back(std::move(cells));
  }

  std::vector<std::size_t> widths_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace

ordered_json status_json(const ClusterView& view, Duration now, UnixSeconds wall) {
  ordered_json json{{"nodes", ordered_json::array()}, {"gateways", ordered_json::array()}};
  for_each_node(view, now, wall,
                [&](const NodeRow& row) { json["nodes"].push_back(row_json<NodeRow>(kNodeColumns, row)); });
  for_each_gateway(view, now, [&](const GatewayRow& row) {
    json["gateways"].push_back(row_json<GatewayRow>(kGatewayColumns, row));
  });
  return json;
}

std::string status_text(const ClusterView& view, Duration now, UnixSeconds wall, std::size_t width) {
  Table nodes{std::span<const Column<NodeRow>>(kNodeColumns)};
  Table gateways{std::span<const Column<GatewayRow>>(kGatewayColumns)};
  for_each_node(view, now, wall, [&](const NodeRow& row) { nodes.add_row<NodeRow>(kNodeColumns, row); });
  for_each_gateway(view, now, [&](const GatewayRow& row) { gateways.add_row<GatewayRow>(kGatewayColumns, row); });
  std::string text = nodes.rows() > 0 ? nodes.text(width) : "no nodes\n";
  text += "\n";
  text += gateways.rows() > 0 ? gateways.text(width) : "no gateways\n";
  return text;
}

}  // namespace millrace
